// Draws every figure of the document from the data beside it; one that cannot be drawn says so and costs no other.
function draw(within) {
  for (const data of within.querySelectorAll("script.plotly")) {
    const place = data.previousElementSibling;
    if (place.dataset.drawn) continue;
    place.dataset.drawn = 1;
    const failed = (error) => { place.textContent = `This figure could not be drawn: ${error.message}`; };
    try {
      const figure = JSON.parse(data.textContent);
      Plotly.newPlot(place, figure.data, figure.layout, { displaylogo: false, responsive: false }).catch(failed);
    } catch (error) {
      failed(error);
    }
  }
}

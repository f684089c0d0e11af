Reveal.initialize({ hash: true, transition: "none", width: 1180, height: 760, margin: 0.03, center: false }).then(() => {
  draw(document);
  document.body.dataset.ready = 1;
});

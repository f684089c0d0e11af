draw(document);
document.body.dataset.ready = 1;

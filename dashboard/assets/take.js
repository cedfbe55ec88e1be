// A figure under the pointer, or with the focus in it, offers itself as a PNG and an SVG file.
(function () {
  const offer = (plot) => {
    if (!window.Plotly || plot.querySelector(".take-figure")) return;
    const holder = plot.closest("[role=img]"), name = ((holder && holder.getAttribute("aria-label")) || "figure").replace(/[^\w]+/g, "-").slice(0, 60);
    const box = document.createElement("div");
    box.className = "take-figure";
    ["png", "svg"].forEach((format) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = format.toUpperCase();
      button.title = `This figure as ${format.toUpperCase()}`;
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        window.Plotly.downloadImage(plot, { format, filename: name, scale: format === "png" ? 2 : 1, width: plot.clientWidth, height: plot.clientHeight });
      });
      box.append(button);
    });
    plot.append(box);
  };
  const meet = (event) => {
    const plot = event.target.closest && event.target.closest(".js-plotly-plot");
    if (plot) offer(plot);
  };
  document.addEventListener("mouseover", meet);
  document.addEventListener("focusin", meet);
})();

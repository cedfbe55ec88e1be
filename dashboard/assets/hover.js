// A picture beside the pointer while it is on a figure's point: figures inside [data-hover], whose value is the picture's
// address with {} for the point's customdata.map.
(function () {
  const box = document.createElement("div");
  box.className = "hover-picture";
  box.innerHTML = "<img alt=''>";
  const hide = () => { box.style.display = "none"; };
  const show = (frame, event) => {
    const point = event.points && event.points[0];
    if (!point || !point.customdata || point.customdata.map === undefined) return hide();
    box.firstChild.src = frame.dataset.hover.replace("{}", point.customdata.map);
    const x = event.event ? event.event.clientX : 0, y = event.event ? event.event.clientY : 0;
    box.style.left = Math.max(4, Math.min(x + 18, innerWidth - 226)) + "px";
    box.style.top = Math.max(4, Math.min(y + 18, innerHeight - 130)) + "px";
    box.style.display = "block";
  };
  const attach = () => {
    let found = false;
    document.querySelectorAll("[data-hover] .js-plotly-plot").forEach((plot) => {
      found = true;
      if (plot.dataset.pictured || !plot.on) return;
      plot.dataset.pictured = "yes";
      plot.on("plotly_hover", (event) => show(plot.closest("[data-hover]"), event));
      plot.on("plotly_unhover", hide);
    });
    if (!found) hide();
  };
  document.addEventListener("DOMContentLoaded", () => {
    document.body.append(box);
    new MutationObserver(attach).observe(document.body, { childList: true, subtree: true });
  });
})();

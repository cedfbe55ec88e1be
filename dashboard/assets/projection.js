// Points of a head's queries, keys, values and answers in [data-projection] (pages/heads/projections.py). A token that is
// shown in a sequence (gallery.js says so by the event attlas-token) lights its points up; a point shows its token there.
(function () {
  const SVG = "http://www.w3.org/2000/svg", W = 760, H = 380, PAD = 30;
  const drawn = (tag, attributes, text) => {
    const found = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    if (text !== undefined) found.textContent = text;
    return found;
  };
  const make = (tag, name, text) => Object.assign(document.createElement(tag), { className: name, textContent: text || "" });
  const short = (value) => Number(value.toPrecision(3)).toString();
  const sequence = (n) => document.querySelector(`.gallery .sequence[data-sequence="${n}"]`);

  class Projection {
    constructor(host, told) {
      this.host = host;
      this.told = told;
      this.same = host.dataset.same === "yes";
      const pick = document.createElement("select");
      pick.setAttribute("aria-label", "Vectors");
      told.views.forEach((view, n) => pick.append(new Option(view.title, n)));
      pick.addEventListener("change", () => this.draw(told.views[pick.value]));
      const label = make("label", "offline-picker", "Vectors");
      label.append(pick);
      this.frame = make("div", "offline-scatter");
      this.says = make("p", "note says");
      host.replaceChildren(label, this.frame, this.says);
      this.draw(told.views[0]);
      host.dataset.ready = "yes";
    }
    draw(view) {
      this.view = view;
      const there = view.places.filter(Boolean), ends = [0, 1].map((axis) => [Math.min(...there.map((p) => p[axis])), Math.max(...there.map((p) => p[axis]))]);
      const at = (value, [low, high], from, to) => high > low ? from + ((value - low) / (high - low)) * (to - from) : (from + to) / 2;
      const svg = drawn("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${view.title} of this head` });
      svg.append(drawn("path", { d: `M${PAD} 8V${H - PAD}H${W - 8}`, stroke: "var(--line)", fill: "none" }));
      svg.append(drawn("text", { x: W / 2, y: H - 8, "text-anchor": "middle", "font-size": 11, fill: "var(--muted)" }, view.axes[0]));
      svg.append(drawn("text", { x: 12, y: H / 2, "text-anchor": "middle", "font-size": 11, fill: "var(--muted)", transform: `rotate(-90 12 ${H / 2})` }, view.axes[1]));
      this.dots = view.places.map((place, n) => {
        if (!place) return null;
        const point = this.told.points[n];
        const dot = drawn("circle", { cx: at(place[0], ends[0], PAD + 14, W - 20), cy: at(place[1], ends[1], H - PAD - 12, 18), r: 4, class: "dot", "data-point": n });
        dot.style.setProperty("--heat", `${Math.round(100 * Math.sqrt(point.pair_weight))}%`);
        dot.addEventListener("pointerenter", () => this.hover(point));
        dot.addEventListener("click", () => this.open(point));
        svg.append(dot);
        return dot;
      });
      this.frame.replaceChildren(svg);
    }
    text(point, end) { return point[`${end}_token`] ? `“${point[`${end}_token`]}”` : `position ${point[`${end}_at`]}`; }
    hover(point) {
      this.says.textContent = `${this.text(point, "query")} (${point.query_at}) looks at ${this.text(point, "key")} (${point.key_at}) with ${short(point.pair_weight)}, sequence ${point.sequence}`;
      const shown = this.same && sequence(point.sequence);
      if (shown) shown.attlas.peek([point.query_at]);
    }
    async open(point) {
      if (!this.same) return;
      const host = document.querySelector(".gallery");
      const shown = sequence(point.sequence) || (host && await window.attlasAlso(host, point.sequence));
      if (!shown) { this.says.textContent = `Sequence ${point.sequence} is not among those kept for this head.`; return; }
      shown.attlas.lock([point.query_at]);
      shown.attlas.bring(point.query_at);
      shown.scrollIntoView({ block: "center" });
      shown.focus({ preventScroll: true });
    }
    light({ sequence: n, places, tokens }) {
      const end = this.view.of, texts = new Set(tokens);
      this.told.points.forEach((point, i) => {
        const dot = this.dots[i];
        if (!dot) return;
        const here = this.same && point.sequence === n && places.includes(point[`${end}_at`]);
        dot.classList.toggle("here", here);
        dot.classList.toggle("alike", !here && texts.has(point[`${end}_token`]) && point[`${end}_token`] !== "");
        dot.setAttribute("r", here ? 9 : 4);
      });
    }
  }

  const attach = () => document.querySelectorAll("[data-projection]").forEach(async (host) => {
    const source = host.dataset.projection;
    if (host.dataset.filled === source) return;
    host.dataset.filled = source;
    try {
      const answer = await fetch(source), told = await answer.json();
      if (!answer.ok) throw new Error(told.error || answer.statusText);
      if (host.dataset.filled !== source) return;
      if (told.views.length) host.attlas = new Projection(host, told);
      else host.append(make("p", "note", "No pairs of this head were drawn."));
    } catch (error) {
      host.append(make("p", "note warning", `The points cannot be shown: ${error.message}`));
    }
  });
  document.addEventListener("attlas-token", (event) => document.querySelectorAll("[data-projection]").forEach((host) => host.attlas && host.attlas.light(event.detail)));
  document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver(attach).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-projection"] });
    attach();
  });
})();

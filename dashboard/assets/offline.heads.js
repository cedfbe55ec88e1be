// The pages of heads in one file (pages/heads/offline.py): a finder, and below it the head that was chosen. No server answers;
// what gallery.js asks for is opened from the compressed blocks of the document.
(function () {
  const told = JSON.parse(document.getElementById("numbers").textContent);
  const root = document.getElementById("offline"), SVG = "http://www.w3.org/2000/svg";
  document.documentElement.dataset.mantineColorScheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const make = (tag, attributes, ...children) => {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) found.setAttribute(name, value);
    found.append(...children.filter((child) => child !== null));
    return found;
  };
  const drawn = (tag, attributes) => {
    const found = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    return found;
  };
  const short = (value) => value === null || value === undefined ? "—" : typeof value === "number" ? Number(value.toPrecision(3)).toString() : String(value);
  const opened = new Map();
  const open = (id) => {
    if (!opened.has(id)) opened.set(id, (async () => {
      const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
      return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text());
    })());
    return opened.get(id);
  };
  // What /api/head-sequences answers.
  window.attlasOffline = async (source) => {
    const asked = new URL(source, location.href).searchParams, whole = (name, other) => asked.has(name) ? Number(asked.get(name)) : other;
    const [head, texts] = await Promise.all([open(`head-${asked.get("layer")}-${asked.get("head")}`), open("texts")]);
    const by = asked.get("by"), { sequences, n_intervals } = head[by], first = whole("offset", 0), last = Math.min(sequences.length, first + whole("limit", 1000));
    return {
      sequences: sequences.slice(first, last).map((row) => ({ ...row, tokens: [], ...texts[row.sequence] })),
      total: sequences.length, next: last < sequences.length ? last : null, n_intervals, by, grid: told.grid, n_prefix: told.n_prefix, scale: told.scale,
    };
  };

  const names = told.numbers.map((number) => number.name), titles = Object.fromEntries(told.numbers.map((n) => [n.name, n.unit ? `${n.title}, ${n.unit}` : n.title]));
  const first = (...wanted) => wanted.find((name) => names.includes(name)) || names[0];
  const chosen = { x: first("qk_distance", "mean_distance"), y: first("pattern_entropy", "entropy"), color: first("unexplained", "sink_mass"), metric: first("induction_score", "entropy"), by: "weight" };
  const placed = (row) => `${row.layer}.${row.head}`;
  const picker = (name, label, options, then) => {
    const select = make("select", { "aria-label": label });
    for (const [value, text] of options) select.append(make("option", { value, ...(value === chosen[name] ? { selected: "" } : {}) }, text));
    select.addEventListener("change", () => { chosen[name] = select.value; then(); });
    return make("label", { class: "offline-picker" }, label, select);
  };
  const span = (name) => {
    const values = told.heads.map((row) => row[name]).filter((v) => typeof v === "number");
    const low = Math.min(...values), high = Math.max(...values);
    return Object.assign((value) => high > low ? (value - low) / (high - low) : 0.5, { low, high });
  };
  const scatter = make("div", { class: "offline-scatter" }), list = make("div", { class: "tags" }), says = make("p", { class: "note" }), page = make("div", {});
  const draw = () => {
    const W = 760, H = 380, pad = 44, [x, y, colour] = [chosen.x, chosen.y, chosen.color].map(span), few = told.heads.length <= 64;
    const svg = drawn("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "scatter of heads" });
    svg.append(drawn("path", { d: `M${pad} 8V${H - pad}H${W - 8}`, stroke: "var(--line)", fill: "none" }));
    for (const [text, at] of [[titles[chosen.x], { x: W / 2, y: H - 6, "text-anchor": "middle" }], [titles[chosen.y], { x: 12, y: H / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${H / 2})` }]]) {
      const label = drawn("text", { ...at, "font-size": 12, fill: "var(--muted)" });
      label.textContent = text;
      svg.append(label);
    }
    for (const [value, at] of [[x.low, { x: pad + 12, y: H - pad + 14 }], [x.high, { x: W - 20, y: H - pad + 14 }], [y.low, { x: pad - 4, y: H - pad - 8, "text-anchor": "end" }], [y.high, { x: pad - 4, y: 28, "text-anchor": "end" }]]) {
      const label = drawn("text", { "text-anchor": "middle", "font-size": 10, fill: "var(--muted)", ...at });
      label.textContent = Number.isFinite(value) ? short(value) : "";
      svg.append(label);
    }
    for (const row of told.heads) {
      const values = [chosen.x, chosen.y].map((name) => row[name]);
      if (values.some((v) => typeof v !== "number")) continue;
      const cx = pad + 12 + x(values[0]) * (W - pad - 32), cy = H - pad - 12 - y(values[1]) * (H - pad - 36), shade = typeof row[chosen.color] === "number" ? colour(row[chosen.color]) : 0;
      const point = drawn("circle", { cx, cy, r: few ? 6 : 4, class: "point", tabindex: few ? 0 : -1, "data-head": placed(row), fill: `color-mix(in srgb, var(--heat-color) ${Math.round(shade * 100)}%, var(--accent))` });
      const told_ = () => { says.textContent = `head ${placed(row)}: ${[chosen.x, chosen.y, chosen.color].map((name) => `${titles[name]} ${short(row[name])}`).join("; ")}`; };
      point.addEventListener("pointerenter", told_);
      point.addEventListener("focus", told_);
      point.addEventListener("click", () => go(placed(row)));
      point.addEventListener("keydown", (event) => { if (event.key === "Enter") go(placed(row)); });
      svg.append(point);
      if (few) { const label = drawn("text", { x: cx, y: cy - 9, "font-size": 10, "text-anchor": "middle", fill: "var(--muted)" }); label.textContent = placed(row); svg.append(label); }
    }
    scatter.replaceChildren(svg);
    const ranked = told.heads.filter((row) => typeof row[chosen.metric] === "number").sort((a, b) => b[chosen.metric] - a[chosen.metric]).slice(0, 16);
    list.replaceChildren(...ranked.map((row) => make("a", { class: "tag", href: `#${placed(row)}` }, make("b", {}, placed(row)), ` ${short(row[chosen.metric])}`)));
  };
  const table = (heads, rows) => make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((h) => make("th", {}, h)))), make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell)))))));
  const card = (title, ...children) => make("section", { class: "card" }, make("div", { class: "card-head" }, make("h2", {}, title)), ...children);
  const show = (place) => {
    const row = told.heads.find((other) => placed(other) === place);
    if (!row) { page.replaceChildren(make("p", { class: "note" }, `This file holds no head ${place}.`)); return; }
    const account = told.accounts[place] || [], host = make("div", { class: "gallery", "data-gallery": `?layer=${row.layer}&head=${row.head}&by=${chosen.by}` });
    const bars = account.map((rule) => {
      const width = `${Math.max(0, Math.min(1, rule.share)) * 100}%`;
      const share = make("span", { class: "share" }, make("i", { style: `width:${width}` }), `${(rule.share * 100).toFixed(1)} %`);
      const range = (name) => rule[name] === null || rule[name] === undefined ? "—" : `${(rule[name] * 100).toFixed(1)} %`;
      return [rule.rule, share, `${range("low")} – ${range("high")}`, range("share_shuffled"), range("share_random")];
    });
    page.replaceChildren(
      make("h2", { class: "offline-head" }, `Head ${place}`),
      card(told.grid ? "Images" : "Sequences", make("p", { class: "note" }, told.help), picker("by", "Ranked by", Object.entries(told.by), () => show(place)), host),
      bars.length ? card("What its attention is spent on", table(["spent on", "share", "95 % interval", "shuffled data", "random weights"], bars)) : make("span", {}),
      card("Its numbers", table(["number", "value", "what it is"], told.numbers.filter((n) => row[n.name] !== null && row[n.name] !== undefined).map((n) => [titles[n.name], short(row[n.name]), n.meaning]))),
    );
  };
  const go = (place) => { if (location.hash === `#${place}`) show(place); else location.hash = place; page.scrollIntoView({ block: "start" }); };
  addEventListener("hashchange", () => show(location.hash.slice(1)));
  const options = names.map((name) => [name, titles[name]]), s = told.summary;
  root.append(
    make("header", { class: "heading" }, make("div", {}, make("h1", {}, `Heads of ${told.model}`), make("p", { class: "lead" }, `${told.heads.length} heads${s.n_sequences ? ` on ${s.n_sequences} ${told.grid ? "images" : "sequences"}` : ""}${told.data ? ` of ${told.data}` : ""}; attlas ${told.version}. Everything is in this file.`))),
    told.heads.length > 1 ? card("All heads", make("div", { class: "filters" }, picker("x", "Across", options, draw), picker("y", "Up", options, draw), picker("color", "Colour", options, draw), picker("metric", "First by", options, draw)), scatter, says, list) : make("span", {}),
    page,
  );
  draw();
  show(location.hash.slice(1) || (list.firstChild ? list.firstChild.hash.slice(1) : placed(told.heads[0])));
})();

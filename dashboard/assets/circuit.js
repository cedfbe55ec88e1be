// A circuit's graph in [data-circuit] (components/circuit_graph.py): a column for every token that takes part, layers upward.
// The pointer, or the focus, keeps a node and its edges and dims the rest; beside it stand what feeds it and what it feeds. A
// click chooses, shift-click or P pins; pinned nodes can be put into a group with a name, which the workspace keeps.
(function () {
  const SVG = "http://www.w3.org/2000/svg", LINE = 24, GAP = 34, LEFT = 70, TOP = 16, FOOT = 34, MOST_LINES = 4, SCALES = [0.3, 3];
  const make = (tag, name, text, more) => {
    const found = Object.assign(document.createElement(tag), { className: name || "" });
    if (text !== undefined) found.textContent = text;
    for (const [key, value] of Object.entries(more || {})) found.setAttribute(key, value);
    return found;
  };
  const drawn = (tag, attributes, text) => {
    const found = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    if (text !== undefined) found.textContent = text;
    return found;
  };
  const short = (value) => value === null || value === undefined ? "—" : value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(1) : Number(value.toPrecision(3)).toString();
  const width = (text) => 6.3 * [...text].length;
  const button = (text, act, title) => {
    const found = make("button", "button", text, title ? { title, type: "button" } : { type: "button" });
    found.addEventListener("click", act);
    return found;
  };

  class Circuit {
    constructor(host, told) {
      this.host = host;
      this.told = told;
      this.groups = { ...told.groups };
      this.pins = new Set((new URLSearchParams(location.search).get("pins") || "").split("|").filter(Boolean));
      this.scale = 1;
      this.frame = make("div", "circuit-frame", undefined, { tabindex: -1 });
      this.aside = make("aside", "circuit-aside", undefined, { "aria-live": "polite", "aria-label": "The node in focus" });
      const body = make("div", "circuit-body");
      body.append(this.frame, this.aside);
      host.replaceChildren(this.tools(), body);
      this.draw(true);
      this.watch();
      host.dataset.ready = "yes";
    }

    tools() {
      const bar = make("div", "circuit-tools");
      const legend = make("ul", "circuit-legend", undefined, { "aria-label": "Legend" });
      for (const kind of new Set(this.told.nodes.map((node) => node.kind))) {
        const item = make("li");
        item.append(make("i", `dot kind-${kind}`), this.told.kinds[kind] || kind);
        legend.append(item);
      }
      for (const [name, text] of [["more", "adds to the target"], ["less", "takes away"], ["dotted", "keys and queries"]]) {
        const item = make("li");
        item.append(make("i", `stroke ${name}`), text);
        legend.append(item);
      }
      const zoom = make("div", "circuit-zoom");
      zoom.append(
        button("−", () => this.zoom(1 / 1.25), "Smaller (Ctrl and the wheel)"), button("+", () => this.zoom(1.25), "Larger (Ctrl and the wheel)"),
        button("Fit", () => this.fit(), "The whole graph in its frame"),
        button("Full screen", () => document.fullscreenElement ? document.exitFullscreen() : this.host.requestFullscreen(), "Esc comes back"),
        button("SVG", () => this.take(), "This graph as an SVG file"),
      );
      bar.append(legend, zoom);
      return bar;
    }

    // Nodes and edges as they are shown: members of a group are one node.
    shown() {
      const of = new Map(), nodes = new Map(this.told.nodes.map((node) => [node.id, node]));
      for (const [name, ids] of Object.entries(this.groups)) {
        const members = ids.filter((id) => nodes.has(id) && id !== this.told.target && !of.has(id));
        if (members.length < 2) continue;
        members.forEach((id) => of.set(id, `group ${name}`));
        const inner = members.map((id) => nodes.get(id)), middle = inner[Math.floor((inner.length - 1) / 2)];
        nodes.set(`group ${name}`, {
          id: `group ${name}`, kind: "group", layer: middle.layer, position: middle.position, label: name, sub: `${members.length} nodes`,
          value: null, influence: inner.reduce((sum, node) => sum + node.influence, 0), members, name,
        });
      }
      of.forEach((_, id) => nodes.delete(id));
      const edges = new Map();
      for (const edge of this.told.edges) {
        const source = of.get(edge.source) || edge.source, target = of.get(edge.target) || edge.target;
        if (source === target || !nodes.has(source) || !nodes.has(target)) continue;
        const key = `${source}\n${target}\n${edge.via}`, kept = edges.get(key);
        if (kept) { kept.weight += edge.weight; kept.influence += edge.influence; kept.heads = ""; } else edges.set(key, { ...edge, source, target });
      }
      return { nodes: [...nodes.values()], edges: [...edges.values()] };
    }

    place(nodes) {
      const key = (node) => node.layer + (node.kind === "mlp" ? 0.5 : 0);
      const rows = [...new Set(nodes.map(key))].sort((a, b) => b - a), end = (position) => position < 0 ? Infinity : position;
      const columns = [...new Set(nodes.map((node) => node.position))].sort((a, b) => end(a) - end(b));
      const cells = new Map();
      nodes.slice().sort((a, b) => Math.abs(b.influence) - Math.abs(a.influence)).forEach((node) => {
        const cell = `${node.position} ${key(node)}`;
        cells.set(cell, [...(cells.get(cell) || []), node]);
      });
      const inner = new Map(), wide = new Map();
      for (const column of columns) {
        const mine = rows.map((row) => cells.get(`${column} ${row}`) || []), text = this.token(column);
        inner.set(column, Math.max(...mine.flat().map((node) => width(node.label + (node.sub ? " " + node.sub : ""))), 40) + 30);
        wide.set(column, Math.max(Math.max(...mine.map((cell) => Math.ceil(cell.length / MOST_LINES))) * inner.get(column), width(text) + 14));
      }
      const needed = LEFT + [...wide.values()].reduce((a, b) => a + b, 0);
      const spare = Math.max(0, (this.frame.clientWidth || 900) - 6 - needed) / columns.length;
      const starts = new Map();
      let x = LEFT, y = TOP;
      for (const column of columns) { starts.set(column, x); x += wide.get(column) + spare; }
      const tops = new Map(), bands = [];
      for (const row of rows) {
        const lines = Math.max(...columns.map((column) => Math.min(MOST_LINES, (cells.get(`${column} ${row}`) || []).length)));
        tops.set(row, y);
        bands.push([row, y, lines * LINE]);
        y += lines * LINE + GAP;
      }
      const at = new Map();
      for (const column of columns) for (const row of rows) (cells.get(`${column} ${row}`) || []).forEach((node, i) => {
        at.set(node.id, [starts.get(column) + Math.floor(i / MOST_LINES) * inner.get(column) + 12, tops.get(row) + (i % MOST_LINES) * LINE + LINE / 2]);
      });
      return { at, bands, starts, columns, size: [x, y - GAP + FOOT] };
    }

    token(position) { return position < 0 || position >= this.told.tokens.length ? "of no token" : `${position} ${this.told.tokens[position]}`; }

    draw(first) {
      const { nodes, edges } = this.shown(), { at, bands, starts, columns, size } = this.place(nodes);
      this.nodes = new Map(nodes.map((node) => [node.id, node]));
      this.edges = edges;
      this.size = size;
      if (!this.nodes.has(this.chosen)) this.chosen = this.nodes.has(this.told.chosen) ? this.told.chosen : this.told.target;
      const svg = drawn("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, role: "group", "aria-label": this.told.label });
      bands.forEach(([row, y, height], i) => {
        if (i % 2 === 0) svg.append(drawn("rect", { x: 0, y: y - GAP / 2, width: size[0], height: height + GAP, class: "band" }));
        svg.append(drawn("text", { x: 8, y: y + 16, class: "row" }, this.told.rows[row] || row));
      });
      const scale = Math.max(...edges.map((edge) => Math.abs(edge.influence)), 1e-12);
      this.lines = edges.map((edge) => {
        const [x0, y0] = at.get(edge.source), [x1, y1] = at.get(edge.target), bend = Math.max(24, Math.abs(y0 - y1) * 0.45);
        const bow = Math.abs(x0 - x1) < 4 ? Math.min(46, 6 + Math.abs(y0 - y1) * 0.14) : 0; // of one column: beside its nodes
        const kind = edge.via !== "value" ? "dotted" : edge.influence > 0 ? "more" : "less";
        const line = drawn("path", { d: `M${x0} ${y0}C${x0 - bow} ${y0 - bend} ${x1 - bow} ${y1 + bend} ${x1} ${y1}`, class: `edge ${kind}`, "stroke-width": edge.via !== "value" ? 1.4 : 0.8 + (5 * Math.abs(edge.influence)) / scale });
        svg.append(line);
        return line;
      });
      this.marks = new Map();
      for (const node of nodes) {
        const [x, y] = at.get(node.id), radius = 4 + 5 * Math.sqrt(Math.min(1, Math.abs(node.influence) / scale));
        const mark = drawn("g", { class: `node kind-${node.kind}`, tabindex: node.id === this.chosen ? 0 : -1, role: "button", "data-node": node.id, "aria-label": `${node.title || node.label}${node.sub ? `, ${node.sub}` : ""}, ${this.token(node.position)}, influence ${short(node.influence)}` });
        mark.append(drawn("rect", { x: x - 10, y: y - LINE / 2, width: width(`${node.label} ${node.sub || ""}`) + 26, height: LINE, class: "reach" }));
        mark.append(drawn("circle", { cx: x, cy: y, r: radius }));
        const text = drawn("text", { x: x + 13, y: y + 4 }, node.label);
        if (node.sub) text.append(drawn("tspan", { class: "sub", dx: 5 }, node.sub));
        mark.append(text);
        mark.addEventListener("pointerenter", () => this.look(node.id));
        mark.addEventListener("focus", () => this.look(node.id));
        mark.addEventListener("click", (event) => event.shiftKey ? this.pin(node.id) : this.choose(node.id));
        this.marks.set(node.id, mark);
        svg.append(mark);
      }
      columns.forEach((column) => svg.append(drawn("text", { x: starts.get(column) + 4, y: size[1] - 12, class: "token" }, this.token(column))));
      this.svg = svg;
      this.frame.replaceChildren(svg);
      if (first) this.scale = Math.min(1, Math.max(0.75, this.frame.clientWidth / size[0]));
      this.resize();
      if (first && size[0] * this.scale > this.frame.clientWidth) this.frame.scrollLeft = this.frame.scrollWidth;
      this.look(null);
    }

    resize() {
      this.svg.setAttribute("width", this.size[0] * this.scale);
      this.svg.setAttribute("height", this.size[1] * this.scale);
    }
    zoom(by, x = this.frame.clientWidth / 2, y = this.frame.clientHeight / 2) {
      const before = this.scale, frame = this.frame;
      this.scale = Math.min(SCALES[1], Math.max(SCALES[0], before * by));
      const factor = this.scale / before, left = (frame.scrollLeft + x) * factor - x, top = (frame.scrollTop + y) * factor - y;
      this.resize();
      frame.scrollTo(left, top);
    }
    fit() {
      this.scale = Math.min(1.5, Math.max(SCALES[0], Math.min(this.frame.clientWidth / this.size[0], this.frame.clientHeight / this.size[1])));
      this.resize();
    }

    // Keep one node and its neighbours; without one, the chosen node is told beside and nothing is dimmed.
    look(id) {
      const here = id || this.chosen, near = new Set([here]);
      this.edges.forEach((edge, i) => {
        const on = edge.source === here || edge.target === here;
        if (on) { near.add(edge.source); near.add(edge.target); }
        this.lines[i].classList.toggle("on", on);
      });
      this.marks.forEach((mark, other) => {
        mark.classList.toggle("on", near.has(other));
        mark.classList.toggle("chosen", other === this.chosen);
        mark.classList.toggle("pinned", this.pins.has(other));
        mark.setAttribute("aria-pressed", String(other === this.chosen));
      });
      this.svg.classList.toggle("dim", Boolean(id));
      const active = document.activeElement; // a name that is being typed stays
      if (!(active && active.value && this.aside.contains(active))) this.tell(here);
    }

    choose(id) {
      this.chosen = id;
      this.marks.forEach((mark, other) => mark.setAttribute("tabindex", other === id ? 0 : -1));
      this.url(this.told.pick, id);
      this.look(null);
    }
    pin(id) {
      if (!this.pins.delete(id)) this.pins.add(id);
      this.url("pins", [...this.pins].join("|"));
      this.look(null);
    }
    url(name, value) {
      if (!name || this.told.offline) return;
      const search = new URLSearchParams(location.search);
      if (value) search.set(name, value); else search.delete(name);
      history.replaceState({}, "", `${location.pathname}?${search}`);
      window.dispatchEvent(new CustomEvent("_dashprivate_pushstate")); // else dcc.Location puts the address it knows of back
    }

    tell(id) {
      const node = this.nodes.get(id), rest = [];
      rest.push(make("h3", "", node.title || node.label), make("p", "note", [node.sub, this.token(node.position)].filter(Boolean).join(" · ")));
      const facts = make("dl", "circuit-facts");
      for (const [name, value, note] of [["value", node.value, this.told.unit[node.kind] || ""], ["influence", node.influence, "of the target"], ["gap", node.gap, "of its terms' sum"]]) {
        if (value === null || value === undefined) continue;
        facts.append(make("dt", "", name), make("dd", "", `${short(value)} ${note}`));
      }
      if (node.n_terms) facts.append(make("dt", "", "cut off"), make("dd", "", `${node.n_terms} terms, Σ |influence| ${short(node.cut)}`));
      rest.push(facts, this.acts(node));
      for (const [title, end, other] of [["Fed by", "target", "source"], ["Feeds", "source", "target"]]) {
        const edges = this.edges.filter((edge) => edge[end] === id).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
        rest.push(make("h4", "", `${title} (${edges.length})`), this.list(edges, other));
      }
      this.aside.replaceChildren(...rest);
    }
    list(edges, other) {
      const found = make("ol", "circuit-edges"), most = Math.max(...edges.map((edge) => Math.abs(edge.weight)), 1e-12);
      for (const edge of edges) {
        const node = this.nodes.get(edge[other]), item = make("li", edge.via !== "value" ? "dotted" : edge.weight > 0 ? "more" : "less");
        item.style.setProperty("--part", `${(100 * Math.abs(edge.weight)) / most}%`);
        const to = make("button", "", undefined, { type: "button", title: edge.heads ? `by head: ${edge.heads}` : "" });
        to.append(make("b", "", node.label), ` ${node.sub || ""} `, make("span", "", `${node.position < 0 ? "" : `@${this.token(node.position)}`}${edge.via === "value" ? "" : `, ${edge.via}`}`), make("em", "", short(edge.weight)));
        to.addEventListener("pointerenter", () => this.marks.get(node.id).classList.add("pointed"));
        to.addEventListener("pointerleave", () => this.marks.get(node.id).classList.remove("pointed"));
        to.addEventListener("click", (event) => { this.choose(node.id); if (event.detail === 0) this.marks.get(node.id).focus(); });
        item.append(to);
        found.append(item);
      }
      return found;
    }
    acts(node) {
      const box = make("div", "circuit-acts");
      for (const [text, changes] of node.actions || []) {
        const search = new URLSearchParams(location.search), path = changes.path || location.pathname;
        if (changes.path) [...search.keys()].forEach((name) => search.delete(name));
        for (const [name, value] of Object.entries(changes)) if (name !== "path") { if (value === null) search.delete(name); else search.set(name, value); }
        const to = make("a", "button", text, { href: `${path}?${search}` });
        to.addEventListener("click", (event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return;
          event.preventDefault();
          if (document.fullscreenElement) document.exitFullscreen();
          history.pushState({}, "", to.href);
          window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
        });
        box.append(to);
      }
      if (node.kind === "group") {
        box.append(button("Ungroup", () => { delete this.groups[node.name]; this.keep(); }, "Its nodes stand alone again"));
        return box;
      }
      if (node.id !== this.told.target) box.append(button(this.pins.has(node.id) ? "Unpin" : "Pin", () => this.pin(node.id), "P, or shift-click on the node"));
      const pinned = [...this.pins].filter((id) => this.nodes.has(id) && id !== this.told.target);
      if (pinned.length > 1) {
        const name = make("input", "circuit-name", undefined, { placeholder: `name for ${pinned.length} pinned nodes`, "aria-label": "Name of the group", maxlength: 60 });
        const group = () => {
          const text = name.value.trim();
          if (!text) return name.focus();
          this.groups[text] = [...(this.groups[text] || []), ...pinned.flatMap((id) => this.nodes.get(id).members || [id])];
          this.pins.clear();
          this.url("pins", "");
          this.chosen = `group ${text}`;
          name.value = "";
          this.keep();
        };
        name.addEventListener("keydown", (event) => { event.stopPropagation(); if (event.key === "Enter") group(); });
        box.append(name, button("Group", group, "Draw the pinned nodes as one"));
      }
      return box;
    }
    async keep() {
      this.draw();
      if (!this.told.save) return;
      try {
        const answer = await fetch(this.told.save, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(this.groups) });
        if (!answer.ok) throw new Error((await answer.json()).error || answer.statusText);
      } catch (error) {
        this.aside.prepend(make("p", "note warning", `The groups are not kept: ${error.message}`));
      }
    }

    watch() {
      this.frame.addEventListener("pointerleave", () => this.look(null));
      this.frame.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        const box = this.frame.getBoundingClientRect();
        this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, event.clientX - box.x, event.clientY - box.y);
      }, { passive: false });
      this.frame.addEventListener("scroll", () => this.svg.querySelectorAll(".row").forEach((text) => text.setAttribute("x", this.frame.scrollLeft / this.scale + 8)));
      let from = null;
      this.frame.addEventListener("pointerdown", (event) => { if (!event.target.closest(".node")) from = [event.clientX + this.frame.scrollLeft, event.clientY + this.frame.scrollTop]; });
      this.frame.addEventListener("pointermove", (event) => { if (from && event.buttons === 1) this.frame.scrollTo(from[0] - event.clientX, from[1] - event.clientY); else from = null; });
      // Up and down along the strongest edge, left and right along the row.
      this.frame.addEventListener("keydown", (event) => {
        const mark = event.target.closest(".node"), id = mark && mark.dataset.node;
        if (!id) return;
        const strongest = (end, other) => (this.edges.filter((edge) => edge[end] === id).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight))[0] || {})[other];
        const row = [...this.nodes.values()].filter((node) => node.layer === this.nodes.get(id).layer && (node.kind === "mlp") === (this.nodes.get(id).kind === "mlp")).map((node) => [node.id, this.marks.get(node.id).getBoundingClientRect()]).sort((a, b) => a[1].x - b[1].x || a[1].y - b[1].y).map((pair) => pair[0]);
        const next = { ArrowUp: () => strongest("source", "target"), ArrowDown: () => strongest("target", "source"), ArrowLeft: () => row[row.indexOf(id) - 1], ArrowRight: () => row[row.indexOf(id) + 1] }[event.key];
        if (event.key === "Enter" || event.key === " ") this.choose(id);
        else if (event.key.toLowerCase() === "p" && !event.ctrlKey && !event.metaKey) this.pin(id);
        else if (!next) return;
        else if (next()) this.marks.get(next()).focus();
        event.preventDefault();
      });
      let wide = this.frame.clientWidth;
      new ResizeObserver(() => { if (Math.abs(this.frame.clientWidth - wide) > 8) { wide = this.frame.clientWidth; this.draw(); } }).observe(this.frame);
    }

    take() {
      const copy = this.svg.cloneNode(true), originals = [this.svg, ...this.svg.querySelectorAll("*")];
      [copy, ...copy.querySelectorAll("*")].forEach((element, i) => {
        const style = getComputedStyle(originals[i]);
        for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "font-weight"]) element.style.setProperty(name, style.getPropertyValue(name));
      });
      copy.setAttribute("xmlns", SVG);
      const link = make("a", "", "", { download: "circuit.svg", href: URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" })) });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
  }

  const attach = () => document.querySelectorAll("[data-circuit]").forEach((host) => {
    if (host.attlasSource === host.dataset.circuit) return;
    host.attlasSource = host.dataset.circuit;
    const told = JSON.parse(host.dataset.circuit), shown = host.attlas;
    // What was chosen, pinned or grouped here comes back from the server as news.
    const rest = ({ chosen, groups, nodes, ...others }) => JSON.stringify([others, nodes.map(({ actions, ...node }) => node)]);
    if (shown && rest(shown.told) === rest(told)) {
      shown.told.nodes.forEach((node, i) => { node.actions = told.nodes[i].actions; });
      if (told.chosen !== shown.chosen && shown.nodes.has(told.chosen)) { shown.chosen = told.chosen; shown.look(null); }
    } else host.attlas = new Circuit(host, told);
  });
  document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver(attach).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-circuit"] });
    attach();
  });
})();

// Sequences of a head in [data-gallery], whose value is the address of their JSON (pages/heads/sequences.py). All that a
// pointer shows is found in the lists that came with them: keys of a token by weight, and later tokens that look at it.
(function () {
  const make = (tag, name, text) => {
    const found = document.createElement(tag);
    if (name) found.className = name;
    if (text !== undefined) found.textContent = text;
    return found;
  };
  const short = (value) => Number(value.toPrecision(3)).toString();

  class Sequence {
    constructor(row, told) {
      this.row = row;
      this.told = told;
      this.scale = told.scale;
      this.columns = told.grid ? told.grid[1] : 0;
      this.n = row.counts.length;
      this.prefix = told.grid ? told.n_prefix : 0;
      this.start = new Int32Array(this.n + 1);
      for (let i = 0; i < this.n; i++) this.start[i + 1] = this.start[i] + row.counts[i];
      this.locked = [];
      this.lit = [];
      this.best = this.strongest();
      this.root = this.draw(told);
      this.show([this.best]);
    }
    // The query of the largest weight with both ends off the first position.
    strongest() {
      let best = 0, at = 0;
      for (let q = 1; q < this.n; q++) for (let e = this.start[q]; e < this.start[q + 1]; e++)
        if (this.row.keys[e] > 0 && this.row.keys[e] !== q && this.row.weights[e] > best) { best = this.row.weights[e]; at = q; }
      return at;
    }
    // Edges by key: made once, when a pointer first comes.
    inward() {
      if (this.back) return this.back;
      const { keys, counts } = this.row, from = new Int32Array(this.n + 1), edge = new Int32Array(keys.length), query = new Int32Array(keys.length);
      for (let q = 0, e = 0; q < this.n; q++) for (let c = 0; c < counts[q]; c++) query[e++] = q;
      for (const key of keys) from[key + 1]++;
      for (let i = 0; i < this.n; i++) from[i + 1] += from[i];
      const next = from.slice();
      for (let e = 0; e < keys.length; e++) edge[next[keys[e]]++] = e;
      return (this.back = { from, edge, query });
    }
    name(i) {
      if (this.row.tokens.length) return `“${this.row.tokens[i]}”`;
      if (i < this.prefix) return i ? `register ${i}` : "CLS";
      const p = i - this.prefix;
      return `patch ${Math.floor(p / this.columns)},${p % this.columns}`;
    }
    draw(told) {
      const root = make("div", "sequence");
      root.tabIndex = 0;
      root.dataset.sequence = this.row.sequence;
      root.attlas = this;
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", `${told.grid ? "image" : "sequence"} ${this.row.sequence}, arrow keys walk its ${told.grid ? "patches" : "tokens"}`);
      const head = make("div", "example-head");
      head.append(make("b", "", short(this.row.strength)), make("span", "", this.row.own ? `${this.n} tokens` : `${told.grid ? "image" : "sequence"} ${this.row.sequence}`));
      this.cells = new Array(this.n);
      const cell = (i, tag, text) => {
        const found = make(tag, "cell", text);
        found.dataset.i = i;
        return (this.cells[i] = found);
      };
      this.body = make("div", told.grid ? "picture" : "text tokens");
      if (!told.grid) { this.body.tabIndex = 0; this.body.setAttribute("role", "group"); this.body.setAttribute("aria-label", "Tokens of the sequence"); }
      if (told.grid) {
        const frame = make("div", "grid");
        frame.style.gridTemplateColumns = `repeat(${told.grid[1]}, 1fr)`;
        if (this.row.picture) frame.style.backgroundImage = `url(${this.row.picture})`;
        for (let i = told.n_prefix; i < this.n; i++) frame.append(cell(i, "i"));
        const before = make("div", "before");
        for (let i = 0; i < told.n_prefix; i++) before.append(cell(i, "span", this.name(i)));
        this.body.append(frame, before);
      } else for (let i = 0; i < this.n; i++) this.body.append(cell(i, "span", this.row.tokens[i] === undefined ? `[${i}]` : this.row.tokens[i]));
      this.says = make("p", "note says");
      root.append(head, this.body, this.says);
      root.addEventListener("pointerover", (event) => { const i = this.under(event); if (i !== null) this.peek([i]); });
      root.addEventListener("pointerleave", () => { if (!this.locked.length) this.show([this.best]); });
      root.addEventListener("click", (event) => {
        const i = this.under(event);
        if (i === null) return;
        if (event.shiftKey && this.locked.length) this.lock(this.locked.includes(i) ? this.locked.filter((j) => j !== i) : [...this.locked, i]);
        else this.lock(this.locked.length === 1 && this.locked[0] === i ? [] : [i]);
      });
      root.addEventListener("keydown", (event) => this.key(event));
      return root;
    }
    under(event) {
      const found = event.target.closest("[data-i]");
      return found ? Number(found.dataset.i) : null;
    }
    peek(places) { if (!this.locked.length) { this.show(places); this.tell(places); } }
    // Other parts of the page may follow (assets/projection.js).
    tell(places) { document.dispatchEvent(new CustomEvent("attlas-token", { detail: { sequence: this.row.sequence, places, tokens: places.map((i) => this.row.tokens[i] || "") } })); }
    lock(places) {
      this.locked = places;
      this.root.classList.toggle("locked", places.length > 0);
      this.show(places.length ? places : [this.best]);
      this.tell(places);
    }
    key(event) {
      if (event.key === "Escape") return this.lock([]);
      if (!/^Arrow/.test(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const at = this.locked.length ? this.locked[this.locked.length - 1] : this.best;
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
      let to = at + step;
      if (!this.columns && event.key === "ArrowUp") to = this.most(at, false);
      if (!this.columns && event.key === "ArrowDown") to = this.most(at, true);
      to = Math.max(0, Math.min(this.n - 1, to));
      this.lock([to]);
      this.bring(to);
    }
    // The other end of the heaviest edge: the key of a query, or the query that looks at a key; not itself.
    most(at, inward) {
      const { from, edge, query } = this.inward();
      let best = -1, found = at;
      const see = (e, other) => { if (other !== at && this.row.weights[e] > best) { best = this.row.weights[e]; found = other; } };
      if (inward) for (let n = from[at]; n < from[at + 1]; n++) see(edge[n], query[edge[n]]);
      else for (let e = this.start[at]; e < this.start[at + 1]; e++) see(e, this.row.keys[e]);
      return found;
    }
    // The circuit page on the text up to this query: the score of its strongest key in pairs of terms.
    why(query, out) {
      const MOST = 94, { explain, model, layer, head } = this.told;
      const [key] = [...out].filter(([k]) => k !== query).sort((a, b) => b[1] - a[1])[0] || [];
      const start = Math.max(0, query - MOST + 1), begins = start === 0 && /^<.*>$/.test(this.row.tokens[0]) ? 1 : start;
      if (!explain || key === undefined || key < start || query < begins) return null;
      const text = this.row.tokens.slice(begins, query + 1).join("").replaceAll("↵", "\n").replaceAll("⇥", "\t").replaceAll("␍", "\r");
      const link = make("a", "", `Why ${this.name(key)}, in pairs of ${explain}`);
      link.href = "/circuit?" + new URLSearchParams({ view: "attention", lm: model, layer, head, src: Math.max(0, key - begins + 1), text });
      link.title = begins > 1 ? "The circuit page reads the last tokens of this text alone" : "On the circuit page";
      return link;
    }
    // The largest of those pairs with their parts of the score, asked for on a click.
    pairs(why) {
      const MOST = 8, WAIT_S = 60, button = make("button", "quiet", "Show the pairs"), href = why.getAttribute("href");
      button.type = "button";
      button.onclick = async () => {
        button.disabled = true;
        button.textContent = "Reading the text…";
        const told = await load(`/api${href}&wait=${WAIT_S}`).catch((error) => error), score = told.score;
        if (!score) { button.replaceWith(`The pairs cannot be had: ${told.message || "the text takes too long"}`); return; }
        const list = make("ul", "pairs");
        list.append(...score.pairs.filter((pair) => pair.dest !== "remainder").slice(0, MOST).map((pair) => {
          const row = make("li"), link = make("a", "", `${pair.dest} × ${pair.src}`);
          link.href = href;
          row.append(link, ` ${short(pair.score)}`);
          return row;
        }), make("li", "", `all ${short(score.score)}`));
        button.replaceWith(list);
      };
      return button;
    }
    bring(i) {
      const cell = this.cells[i], box = this.body;
      if (!cell || box.scrollHeight <= box.clientHeight) return;
      const top = cell.offsetTop - box.offsetTop;
      if (top < box.scrollTop || top + 24 > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
    }
    show(places) {
      for (const cell of this.lit) { cell.className = "cell"; cell.style.removeProperty("--heat"); }
      const { from, edge, query } = this.inward(), { keys, weights } = this.row, out = new Map(), back = new Map();
      for (const q of places) {
        for (let e = this.start[q]; e < this.start[q + 1]; e++) out.set(keys[e], Math.max(out.get(keys[e]) || 0, weights[e]));
        for (let n = from[q]; n < from[q + 1]; n++) { const e = edge[n]; if (query[e] !== q) back.set(query[e], Math.max(back.get(query[e]) || 0, weights[e])); }
      }
      const lit = new Set([...back.keys(), ...out.keys(), ...places]);
      this.lit = [];
      for (const i of lit) {
        const cell = this.cells[i], to = out.get(i), by = back.get(i);
        if (!cell) continue;
        const share = (to === undefined ? by || 0 : to) / this.scale;
        cell.className = "cell" + (to !== undefined ? share > 0.55 ? " to strong" : " to" : by !== undefined ? " by" : "") + (to !== undefined && by !== undefined ? " both" : "") + (places.includes(i) ? " query" : "");
        cell.style.setProperty("--heat", `${Math.round(100 * Math.sqrt(share))}%`);
        this.lit.push(cell);
      }
      const list = (found) => [...found].sort((a, b) => b[1] - a[1]).slice(0, 4).map(([i, w]) => `${this.name(i)} ${short(w / this.scale)}`).join(", ");
      this.says.textContent = `${places.map((i) => this.name(i)).join(" + ")} looks at ${list(out) || "nothing that is kept"}` +
        (back.size ? `; ${back.size} look${back.size === 1 ? "s" : ""} at it: ${list(back)}` : "");
      const why = places.length === 1 && this.locked.length && this.why(places[0], out);
      if (why) this.says.append(" ", why, " ", this.pairs(why));
    }
  }

  const part = (row, told) => row.own ? row.own : row.asked ? "The one asked for" : told.by === "rest" ? "" : row.interval === told.n_intervals - 1
    ? `The strongest of all (part ${told.n_intervals} of ${told.n_intervals})` : `Drawn from part ${row.interval + 1} of ${told.n_intervals}`;
  // At first what a screen shows, then more as it is scrolled to. An address that says how many it wants waits for a click.
  const FIRST = 3, THEN = 8, KEPT = 12;
  const near = new IntersectionObserver((seen) => seen.forEach(({ target, isIntersecting }) => isIntersecting && target.click()), { rootMargin: "600px" });
  const asked = new Map();
  const load = async (source) => {
    if (window.attlasOffline) return window.attlasOffline(source); // a file that holds them (analyses/heads/offline.py)
    const first = document.getElementById("first-sequences"); // the document brought them
    if (first && first.dataset.of === source) return JSON.parse(first.textContent);
    const answer = await fetch(source), told = await answer.json();
    if (!answer.ok) throw new Error(told.error || answer.statusText);
    if (told.job && told.job.state !== "done") throw new Error(told.job.error || `${told.job.title} is ${told.job.state}`);
    return told;
  };
  const ask = (source) => {
    if (!asked.has(source)) asked.set(source, load(source));
    asked.get(source).catch(() => asked.delete(source));
    if (asked.size > KEPT) asked.delete(asked.keys().next().value);
    return asked.get(source);
  };
  // `place.host` may change meanwhile: what is drawn before the page has come moves into it.
  const fill = async (place, offset, last) => {
    const source = place.source, url = new URL(source, location.href), waits = url.searchParams.has("limit");
    if (!waits) url.searchParams.set("limit", offset ? THEN : FIRST);
    if (offset) url.searchParams.set("offset", offset);
    const told = await ask(url.pathname + url.search).catch((error) => error), host = place.host;
    if (host.dataset.filled !== source) return; // the page went on to another head meanwhile
    if (told instanceof Error) {
      host.append(make("p", "note warning", `The sequences cannot be shown: ${told.message}`));
      return;
    }
    let before = last, list = host.lastElementChild;
    for (const row of told.sequences) {
      const title = part(row, told);
      if (title !== before || !list || !list.classList.contains("sequences")) {
        if (title) host.append(make("h3", "", title));
        list = make("div", told.grid ? "sequences images" : "sequences");
        host.append(list);
        before = title;
      }
      const shown = new Sequence(row, told);
      list.append(shown.root);
      shown.bring(shown.best);
    }
    if (!told.total) host.append(make("p", "note", "None were kept."));
    if (told.next !== null) {
      const more = make("button", "button", `More (${told.total - told.next})`);
      more.addEventListener("click", () => { near.unobserve(more); more.remove(); fill(place, told.next, before); }, { once: true });
      host.append(more);
      if (!waits) near.observe(more);
    }
    host.dataset.ready = "yes";
  };
  // Another sequence of the same head, before those that are shown; null where it was not kept.
  window.attlasAlso = async (host, number) => {
    const url = new URL(host.dataset.gallery, location.href);
    url.searchParams.set("sequence", number);
    url.searchParams.set("limit", 1);
    const told = await ask(url.pathname + url.search).catch(() => null), row = told && told.sequences[0];
    if (!row || !row.asked) return null;
    const list = make("div", told.grid ? "sequences images" : "sequences"), shown = new Sequence(row, told);
    list.append(shown.root);
    host.prepend(make("h3", "", part(row, told)), list);
    return shown.root;
  };
  const attach = () => {
    document.querySelectorAll("[data-gallery]").forEach((host) => {
      const source = host.dataset.gallery;
      if (host.dataset.filled === source) return;
      host.dataset.filled = source;
      delete host.dataset.ready;
      const early = [...document.querySelectorAll("#preview [data-gallery]")].find((other) => other !== host && other.place && other.dataset.gallery === source);
      host.place = early ? early.place : { source };
      host.place.host = host;
      host.replaceChildren(...(early ? early.childNodes : []));
      if (!early) fill(host.place, 0, null);
      else if (early.dataset.ready) host.dataset.ready = "yes";
    });
    const early = document.getElementById("preview");
    if (early && document.querySelector("#page .content")) early.remove();
  };
  const begin = () => {
    new MutationObserver(attach).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-gallery"] });
    attach();
  };
  if (document.body) begin(); else document.addEventListener("DOMContentLoaded", begin);
})();

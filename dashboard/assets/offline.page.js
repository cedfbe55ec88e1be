// A page in one file (dashboard/as_file.py): figures, tables that sort and filter, blocks that open. No server answers.
(function () {
  const plots = (root) => {
    if (!window.Plotly) return;
    root.querySelectorAll("[data-plot]").forEach((host) => {
      const figure = JSON.parse(host.dataset.plot);
      host.removeAttribute("data-plot");
      window.Plotly.newPlot(host, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    });
  };
  const value = (row, i) => row.cells[i] ? row.cells[i].dataset.value : "";
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // nothing stands last either way
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const tables = (root) => root.querySelectorAll(".still-table").forEach((box) => {
    if (box.dataset.ready) return;
    box.dataset.ready = "yes";
    const body = box.querySelector("tbody"), rows = [...body.rows], search = box.querySelector("input");
    box.querySelectorAll("th button").forEach((button, i) => button.addEventListener("click", () => {
      const down = button.parentElement.getAttribute("aria-sort") !== "descending";
      box.querySelectorAll("th").forEach((head) => head.removeAttribute("aria-sort"));
      button.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows.sort((a, b) => {
        const [x, y] = [value(a, i), value(b, i)];
        return x === "" || y === "" ? compare(x, y) : down ? -compare(x, y) : compare(x, y);
      }));
    }));
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
    });
    rows.filter((row) => row.dataset.open !== undefined).forEach((row) => {
      row.addEventListener("click", () => { location.hash = row.dataset.open; });
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") location.hash = row.dataset.open; });
    });
  });
  const place = document.getElementById("opened");
  const open = async () => {
    const name = decodeURIComponent(location.hash.slice(1)), found = name && document.querySelector(`[data-block="${CSS.escape(name)}"]`);
    if (!found || !place) return;
    const bytes = Uint8Array.from(atob(found.textContent), (c) => c.charCodeAt(0));
    place.innerHTML = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
    document.querySelectorAll("[data-open]").forEach((row) => row.classList.toggle("here", row.dataset.open === name));
    ready(place);
    place.scrollIntoView({ block: "start" });
  };
  const ready = (root) => { plots(root); tables(root); };
  window.addEventListener("hashchange", open);
  ready(document);
  open();
})();

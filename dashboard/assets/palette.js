// Ctrl-K (or ⌘K): a box that goes anywhere. What it lists is found by the server (dashboard/find.py).
(function () {
  let dialog, input, list, rows = [], at = 0, asked = 0, timer = null;
  const make = (tag, name, text) => {
    const found = document.createElement(tag);
    if (name) found.className = name;
    if (text !== undefined) found.textContent = text;
    return found;
  };
  const build = () => {
    dialog = make("dialog", "palette");
    dialog.setAttribute("aria-label", "Go to");
    input = make("input");
    input.type = "text";
    input.placeholder = "A page, a model, a run, a head (3.0), a feature (#746), words it fires on";
    input.setAttribute("role", "combobox");
    input.setAttribute("aria-expanded", "true");
    input.setAttribute("aria-controls", "palette-list");
    input.setAttribute("aria-label", "Go to");
    list = make("ul");
    list.id = "palette-list";
    list.setAttribute("role", "listbox");
    dialog.append(input, list);
    document.body.append(dialog);
    input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 120); });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); choose(at + (event.key === "ArrowDown" ? 1 : -1)); }
      if (event.key === "Enter" && rows[at]) { event.preventDefault(); go(rows[at]); }
    });
  };
  const choose = (i) => {
    at = rows.length ? (i + rows.length) % rows.length : 0;
    [...list.children].forEach((item, j) => item.setAttribute("aria-selected", String(j === at)));
    const item = list.children[at];
    if (item && item.id) { item.scrollIntoView({ block: "nearest" }); input.setAttribute("aria-activedescendant", item.id); }
  };
  const go = (row) => {
    dialog.close();
    history.pushState({}, "", row.href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  };
  const show = (found) => {
    rows = found;
    list.replaceChildren(...rows.map((row, i) => {
      const item = make("li");
      item.id = `palette-${i}`;
      item.setAttribute("role", "option");
      item.append(make("span", "tag", row.sort), make("b", "", row.text), make("span", "sub", row.note));
      item.addEventListener("click", () => go(row));
      return item;
    }));
    if (!rows.length) list.append(make("li", "none", "Nothing of that name here."));
    choose(0);
  };
  const ask = async () => {
    const mine = ++asked, model = new URLSearchParams(window.location.search).get("model") || "";
    try {
      const answer = await fetch(`/find?q=${encodeURIComponent(input.value)}&model=${encodeURIComponent(model)}`);
      const found = await answer.json();
      if (mine === asked) show(found.found || []);
    } catch (error) { /* the banner says that the server is away */ }
  };
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      open();
    }
  });
  const open = () => {
    if (!dialog) build();
    if (dialog.open) return dialog.close();
    input.value = "";
    dialog.showModal();
    ask();
  };
  document.addEventListener("click", (event) => { if (event.target.closest && event.target.closest("#palette-open")) open(); });
})();

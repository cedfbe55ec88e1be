// Runs before Dash: the remembered (or the system's) theme is a cookie, so that the server draws the right one at once.
(function () {
  const remembered = document.cookie.match(/attlas-theme=(light|dark)/);
  const theme = remembered ? remembered[1] : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const remember = (name) => {
    document.cookie = `attlas-theme=${name}; path=/; max-age=31536000; SameSite=Lax`;
    document.documentElement.setAttribute("data-mantine-color-scheme", name);
  };
  remember(theme);

  const nothing = () => window.dash_clientside.no_update;
  const go = (url) => {
    history.pushState({}, "", url);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  };

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    attlas: {
      // Controls -> URL. A control at its default leaves the URL; changing a filter keeps everything else.
      params: (values, ids) => {
        const search = new URLSearchParams(window.location.search);
        ids.forEach((id, i) => {
          const value = values[i] === null || values[i] === undefined ? "" : String(values[i]);
          if (value === id.default || value === "") search.delete(id.name);
          else search.set(id.name, value);
        });
        const changed = ids.some((id) => id.name === "model") &&
          (new URLSearchParams(window.location.search).get("model") || "") !== (search.get("model") || "");
        if (changed) ["run", "id", "head", "layer", "family", "sequence", "heads", "compare", "beside"].forEach((name) => search.delete(name));
        const next = search.toString() ? "?" + search.toString() : "";
        return next === window.location.search ? nothing() : next;
      },
      // A click on a figure's point, or a box around points -> URL (see components/figures.py).
      pick: (clicked, selected, ids) => {
        const context = window.dash_clientside.callback_context;
        const changed = context.triggered[0];
        if (!changed || !changed.value || !changed.value.points) return [nothing(), nothing()];
        const id = context.triggered_id, points = changed.value.points;
        const search = new URLSearchParams(window.location.search);
        const put = (name, value) => (value === null || value === undefined ? search.delete(name) : search.set(name, value));
        if (changed.prop_id.endsWith(".selectedData")) {
          if (!id.brush) return [nothing(), nothing()];
          const chosen = [...new Set(points.map((p) => p.customdata && p.customdata[id.brush]).filter((v) => v !== undefined && v !== null))];
          put(id.brush, chosen.length ? chosen.slice(0, 200).join(",") : null);
        } else {
          if (!id.pick || !points.length) return [nothing(), nothing()];
          if (id.pick === "*") Object.entries(points[0].customdata || {}).forEach(([name, value]) => put(name, value));
          else id.pick.split(",").forEach((name, i) => {
            const [key, fixed] = name.split("=");
            if (key) put(key, fixed !== undefined ? fixed : i ? points[0].y : points[0].x);
          });
        }
        const path = id.path || window.location.pathname, next = search.toString() ? "?" + search.toString() : "";
        if (path === window.location.pathname && next === window.location.search) return [nothing(), nothing()];
        return [path === window.location.pathname ? nothing() : path, next];
      },
      toggle: (clicks, now) => {
        if (!clicks) return [nothing(), nothing()];
        const next = now === "dark" ? "light" : "dark";
        remember(next);
        return [next, next];
      },
      // The grid's own sort order goes to the URL without drawing the page anew.
      sort: (request) => {
        if (!request) return nothing();
        const search = new URLSearchParams(window.location.search);
        const model = request.sortModel && request.sortModel[0];
        if (model) search.set("sort", (model.sort === "desc" ? "-" : "") + model.colId);
        else search.delete("sort");
        const next = search.toString() ? "?" + search.toString() : "";
        if (next !== window.location.search) {
          history.replaceState({}, "", window.location.pathname + next);
          // Else dcc.Location puts the address it knows of back with the next change of a control.
          window.dash_clientside.set_props("url", { href: window.location.href });
        }
        return nothing();
      },
    },
  });

  const cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  cells.FeatureLink = (props) => {
    if (!props.data) return null;
    const run = props.colDef.cellRendererParams ? props.colDef.cellRendererParams.run : "";
    const model = new URLSearchParams(window.location.search).get("model");
    const list = window.location.pathname === "/features" ? window.location.search.slice(1) : "";
    const href = `/feature?run=${encodeURIComponent(run)}&id=${props.value}` + (model ? `&model=${encodeURIComponent(model)}` : "") +
      (list ? `&list=${encodeURIComponent(list)}` : "");
    return React.createElement("a", {
      href, className: "feature-link",
      onClick: (event) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey) return;
        event.preventDefault();
        go(href);
      },
    }, props.value);
  };
  cells.HeadLink = (props) => {
    const [layer, head] = String(props.value || "").split(".");
    const model = props.colDef.cellRendererParams ? props.colDef.cellRendererParams.model : "";
    const href = `/head?layer=${layer}&head=${head}` + (model ? `&model=${encodeURIComponent(model)}` : "");
    return React.createElement("a", {
      href, className: "feature-link",
      onClick: (event) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey) return;
        event.preventDefault();
        go(href);
      },
    }, props.value);
  };
  cells.Share = (props) => {
    if (props.value === null || props.value === undefined) return null;
    const width = Math.max(0, Math.min(1, props.value)) * 100;
    return React.createElement("span", { className: "share", title: props.value },
      React.createElement("i", { style: { width: width + "%" } }), (props.value * 100).toFixed(0) + " %");
  };
  const numbers = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  numbers.sig = (value) => value === null || value === undefined ? "" :
    Number.isInteger(value) ? value.toLocaleString("en") : Math.abs(value) < 1e-3 ? value.toExponential(1) : Number(value.toPrecision(3)).toLocaleString("en");

  // The input of Dash's upload has no name for screen readers.
  const nameUploads = () => document.querySelectorAll(".upload input[type=file]:not([aria-label])").forEach((input) => {
    input.setAttribute("aria-label", (input.closest(".upload").innerText || "A file").trim());
  });
  document.addEventListener("DOMContentLoaded", () => new MutationObserver(nameUploads).observe(document.body, { childList: true, subtree: true }));
  // Ctrl-Enter takes a text box over, as leaving it does.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.tagName === "TEXTAREA") event.target.blur();
  });
  // Along the list a feature came from; the page may still show the feature from which the key went on.
  const step = (way, back) => {
    const ids = (rel) => ((document.querySelector(`[data-rel=${rel}]`) || { dataset: {} }).dataset.ids || "").split(",").filter(Boolean);
    const shown = document.querySelector("[data-feature]"), search = new URLSearchParams(window.location.search);
    if (!shown) return;
    const all = [...ids(back).reverse(), shown.dataset.feature, ...ids(way)];
    const next = all[all.indexOf(search.get("id")) + 1];
    if (all.indexOf(search.get("id")) < 0 || next === undefined) return;
    search.set("id", next);
    history.pushState({}, "", window.location.pathname + "?" + search.toString());
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
  };
  // "/" goes to the search box, [ and ] to the feature before and after.
  document.addEventListener("keydown", (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(event.target.tagName)) return;
    const press = (selector) => { const found = document.querySelector(selector); if (found) { event.preventDefault(); found.focus(); return found; } };
    if (event.key === "/") press("input[type=search], .search input");
    if (event.key === "[") step("prev", "next");
    if (event.key === "]") step("next", "prev");
  });
})();

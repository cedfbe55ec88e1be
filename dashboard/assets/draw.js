// Puts what the server drew on the page by changing only what differs from what stands there. A component that stays keeps
// its focus, caret, scroll, zoom and open menus; Dash itself would make all of a page anew for a change of one number.
(function () {
  const OWNED = ["data-gallery", "data-hover"]; // scripts of ours filled these elements: another value is another element
  const CONTROLS = ["param", "note"]; // types of ids of what a person types into
  const isComponent = (node) => node !== null && typeof node === "object" && "type" in node && "namespace" in node && "props" in node;
  const equal = (a, b) => {
    if (a === b) return true;
    if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
    if (Array.isArray(a) !== Array.isArray(b)) return false;
    const keys = Object.keys(a);
    return keys.length === Object.keys(b).length && keys.every((key) => key in b && equal(a[key], b[key]));
  };
  const absent = (value) => value === undefined || value === null;
  // May `after` take the place of `before` by changes of its properties?
  const alike = (before, after) =>
    isComponent(before) && isComponent(after)
      ? before.type === after.type && before.namespace === after.namespace && equal(before.props.id, after.props.id) &&
        OWNED.every((name) => before.props[name] === after.props[name])
      : !isComponent(before) && !isComponent(after) && equal(before, after);

  const nameOf = (id) => (typeof id === "object" ? window.dash_component_api.stringifyId(id) : id);
  const focused = (id) => {
    const element = id && document.getElementById(nameOf(id));
    return Boolean(element && (element === document.activeElement || element.contains(document.activeElement)));
  };

  const change = (path, before, after) => {
    const changed = {}, shown = window.dash_component_api.getLayout(path);
    const mine = after.props.id && CONTROLS.includes(after.props.id.type);
    for (const name of new Set([...Object.keys(before.props), ...Object.keys(after.props)])) {
      if (name === "children" || name === "id") continue;
      const value = after.props[name];
      // What is being typed, or moved by the arrow keys, is ahead of the server.
      if (mine && name === "value" && focused(after.props.id)) continue;
      const stands = mine && name === "value" && shown ? shown.props.value : before.props[name];
      if (!equal(stands, value) && !(absent(stands) && absent(value))) changed[name] = value === undefined ? null : value;
    }
    const old = before.props.children, next = after.props.children;
    const whole = before.props.key !== after.props.key;
    const inner = [];
    if (whole || !pairs(path, old, next, inner)) {
      if (whole || !(absent(old) && absent(next))) changed.children = next === undefined ? null : next;
    } else inner.forEach((step) => change(...step));
    if (Object.keys(changed).length) window.dash_clientside.set_props(path, changed);
  };
  // Fills `steps` with the children to change; false when they have to be made anew.
  const pairs = (path, old, next, steps) => {
    if (Array.isArray(old) !== Array.isArray(next)) return false;
    if (!Array.isArray(old)) {
      if (!alike(old, next)) return false;
      if (isComponent(old)) steps.push([[...path, "props", "children"], old, next]);
      return true;
    }
    if (old.length !== next.length || !old.every((node, i) => alike(node, next[i]))) return false;
    old.forEach((node, i) => { if (isComponent(node)) steps.push([[...path, "props", "children", i], node, next[i]]); });
    return true;
  };

  const places = {};
  const find = (node, id, path) => {
    if (Array.isArray(node)) {
      for (let i = 0; i < node.length; i++) { const found = find(node[i], id, [...path, i]); if (found) return found; }
      return null;
    }
    if (!isComponent(node)) return null;
    return node.props.id === id ? path : find(node.props.children, id, [...path, "props", "children"]);
  };
  const placeOf = (id) => {
    if (!places[id]) {
      const layout = window.dash_component_api.getLayout([]);
      const root = layout.components !== undefined ? "components" : null;
      places[id] = find(root ? layout[root] : layout, id, root ? [root] : []);
    }
    return places[id];
  };

  // Where a control had to be made anew after all: its focus and caret as they were.
  const remember = () => {
    const active = document.activeElement, holder = active && active.closest && active.closest('[id*=\'"type":"param"\'], [id*=\'"type":"note"\']');
    if (!holder) return () => {};
    const id = holder.id, value = active.value, start = active.selectionStart, end = active.selectionEnd;
    return () => requestAnimationFrame(() => {
      const again = document.getElementById(id);
      if (!again || document.activeElement === active || document.activeElement !== document.body) return;
      const input = again.matches("input, textarea, button, [tabindex]") ? again : again.querySelector("input, textarea, button, [role=slider], [tabindex]");
      if (!input) return;
      input.focus({ preventScroll: true });
      if (start !== null && start !== undefined && input.value === value) input.setSelectionRange(start, end);
    });
  };

  const last = {};
  const put = (id, tree) => {
    const path = placeOf(id), before = last[id], after = { type: "", namespace: "", props: { children: tree } };
    last[id] = after;
    if (!before) window.dash_clientside.set_props(path, { children: tree });
    else change(path, before, after);
  };
  window.dash_clientside.attlas.show = (drawn) => {
    if (!drawn) return;
    const restore = remember();
    ["frame", "page"].forEach((id) => { if (drawn[id] !== undefined) put(id, drawn[id]); });
    document.title = drawn.title;
    restore();
  };
})();

"""A circuit's graph under the pointer: drawn by `assets/circuit.js` from plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dash import html

from attlas.dashboard.components.basic import attributes

KINDS = {
    "logits": "logits",
    "feature": "feature",
    "head": "head",
    "mlp": "MLP",
    "error": "what a dictionary misses",
    "embed": "embedding",
    "position": "position",
    "bias": "bias",
    "remainder": "cut off",
    "group": "group",
}


def circuit_graph(
    nodes: Sequence[Mapping[str, Any]],
    edges: Sequence[Mapping[str, Any]],
    *,
    target: str,
    tokens: Sequence[str],
    label: str,
    chosen: str | None = None,
    pick: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
    save: str = "",
) -> html.Div:
    """Columns of tokens, rows of layers; labels keep their size, the frame scrolls where the graph is larger.

    Args:
        nodes: id, kind, layer, position, label, value, influence; optionally sub (after the label), title, gap, n_terms,
            cut, and actions: (text, changes of the URL's parameters; "path" leads to another page).
        edges: source, target, via ("value", "key", "query"), weight, influence, heads (text).
        target: id of the node that was traced.
        tokens: of the prompt; a node's position −1 stands in a column of its own.
        label: what screen readers say of the graph.
        chosen: id of the node told of at first; `pick` names the URL's parameter that holds it.
        groups: name → ids of nodes drawn as one.
        save: where changed groups are sent; "" keeps them in the page alone.
    """
    layers = {n["layer"] for n in nodes if n["kind"] != "logits"}
    rows: dict[str, str] = {str(layer): f"L{layer}" for layer in layers}
    rows |= {str(layer + 0.5): f"L{layer} mlp" for layer in layers} | {"-1": "input"}
    rows |= {str(n["layer"]): "out" for n in nodes if n["kind"] == "logits"}
    told = {
        "nodes": list(nodes),
        "edges": list(edges),
        "target": target,
        "tokens": list(tokens),
        "label": label,
        "chosen": chosen or target,
        "pick": pick,
        "groups": {name: list(ids) for name, ids in (groups or {}).items()},
        "save": save,
        "kinds": KINDS,
        "rows": rows,
        "unit": {"logits": "logits", "feature": "activation"},
    }
    return html.Div(className="circuit", **attributes({"data-circuit": json.dumps(told, ensure_ascii=False)}))

"""Cards of a head from other runs: what it is by its weights, what it is worth, and heads like it."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import card, metric_cards, short, table
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.page import Data, link
from attlas.dashboard.reader import Row, WorkspaceReader

N_PAIRS, N_ALIKE = 15, 8
_MEASURES = {
    "pattern_off_sink": "pattern off the first position",
    "pattern": "pattern",
    "pattern_elsewhere": "pattern, another text",
    "qk_queries": "queries",
    "qk_keys": "keys",
    "ov_reads": "reads",
    "ov_writes": "writes",
}
_ABLATIONS = {"zero": "z set to zero", "mean": "z set to its mean"}


def data(reader: WorkspaceReader, model: str | None, layer: int, head: int) -> Data:
    """Rows of one head in the newest runs of `head_weights`, `head_effects`, `head_logits` and `head_similar`."""
    runs = {
        kind: reader.pick(kind, None, model) for kind in ("head_weights", "head_effects", "head_logits", "head_similar")
    }
    one: dict[str, int] = {"layer": layer, "head": head}
    pairs = reader.rows(runs["head_weights"], "head_token_pairs", ("circuit", "rank"), **one)
    alike = reader.rows(runs["head_similar"], "head_similar", ("rank",), of_model=0, **one)
    told = reader.rows(runs["head_similar"], "head_similarity")
    similar = runs["head_similar"]
    return {
        "weights": _first(reader.rows(runs["head_weights"], "head_weights", (), **one)),
        "pairs": {circuit: [p for p in pairs if p["circuit"] == circuit][:N_PAIRS] for circuit in ("qk", "ov")},
        "composition": _composition(reader, runs["head_weights"], layer, head),
        "effects": reader.rows(runs["head_effects"], "head_effects", ("ablation",), **one),
        "direct_logit": _first(reader.rows(runs["head_logits"], "head_logits", (), **one)),
        "alike": alike[:N_ALIKE],
        "alike_with": similar.summary.get("compared_with") if similar else None,
        "alike_pairs": next((row for row in told if row["compared_by"] == "pattern_off_sink"), None),
    }


def _first(rows: list[Row]) -> Row | None:
    return {k: v for k, v in rows[0].items() if not isinstance(v, list)} if rows else None


def _composition(reader: WorkspaceReader, run: Any, layer: int, head: int) -> list[Row]:
    """The strongest ends of composition, earlier and later heads alike, by their ratio to random weights."""
    path = reader.table_file(run, "head_composition")
    if path is None:
        return []
    sql = (
        "SELECT layer, head, from_layer, from_head, kind, ratio, random FROM (UNPIVOT (SELECT layer, head, from_layer, "
        "from_head, random, q_composition AS Q, k_composition AS K, v_composition AS V FROM read_parquet(?) "
        "WHERE (layer = ? AND head = ?) OR (from_layer = ? AND from_head = ?)) ON Q, K, V INTO NAME kind VALUE ratio) "
        "ORDER BY ratio / random DESC, kind LIMIT 12"
    )
    return reader.query(sql, [str(path), layer, head, layer, head])


def cards(data: Data) -> list[Any]:
    """Those cards that there is something for."""
    return [found for found in (_weights(data), _composed(data), _worth(data), _alike(data)) if found is not None]


def _weights(data: Data) -> Any:
    row, pairs = data["weights"], data["pairs"]
    if not row:
        return None
    numbers = metric_cards(
        [
            ("Copying", row["copying"], "−1 … 1"),
            ("Matching", row["matching"], "−1 … 1"),
            ("Rank of OV", row["ov_rank"], "effective"),
            ("Rank of QK", row["qk_rank"], "effective"),
        ]
    )
    titles = {"qk": ("What it looks for (QK)", "query", "key"), "ov": ("What it moves (OV)", "attended to", "raises")}
    tables = [
        html.Div(
            [
                html.H3(title),
                table(
                    [
                        {"from": visible(p["from_text"]), "to": visible(p["to_text"]), "value": p["pair_value"]}
                        for p in pairs[circuit]
                    ],
                    {"from": start, "to": end, "value": "logit"},
                    summary="Token pairs",
                    open_=True,
                ),
            ]
        )
        for circuit, (title, start, end) in titles.items()
        if pairs[circuit]
    ]
    note = "Whatever the text says: the strongest token pairs of W_QK and W_OV through embedding and unembedding, norms folded."
    return card("In its weights", numbers, html.Div(tables, className="pair"), note=note)


def head_anchor(data: Data, layer: int, head: int) -> Any:
    """A link to another head of the model; to none for itself."""
    name = f"{layer}.{head}"
    here = (layer, head) == (data["layer"], data["head"])
    return name if here else dcc.Link(name, href=link("/head", model=data["model"], layer=layer, head=head))


def _composed(data: Data) -> Any:
    rows = [
        {
            "from": head_anchor(data, row["from_layer"], row["from_head"]),
            "to": head_anchor(data, row["layer"], row["head"]),
            "kind": row["kind"],
            "ratio": row["ratio"],
            "random": row["random"],
        }
        for row in data["composition"]
    ]
    if not rows:
        return None
    names = {"from": "earlier head", "to": "later head", "kind": "by", "ratio": "ratio", "random": "at random"}
    note = "How much of what the earlier head writes the later one's queries (Q), keys (K) or values (V) read."
    return card("Heads it composes with", table(rows, names, open_=True, summary="Strongest first"), note=note)


def _worth(data: Data) -> Any:
    rows = [
        {"what": f"Δ loss, {_ABLATIONS.get(r['ablation'], r['ablation'])}", **_of(r, "delta")} for r in data["effects"]
    ]
    direct = data["direct_logit"]
    if direct:
        rows += [{"what": "true next token's logit, directly", **_of(direct, "direct_logit")}]
        rows += [{"what": "predictions whose token it raises", "value": direct["raised"], "low": None, "high": None}]
    if not rows:
        return None
    names = {"what": "effect", "value": "value", "low": "low", "high": "high"}
    note = (
        "Nats of loss when this head alone is taken out; logits that it adds by itself. 95 % intervals over sequences."
    )
    return card("What it is worth", table(rows, names, open_=True, summary="Effects"), note=note)


def _of(row: Row, value: str) -> Row:
    return {"value": row[value], "low": row.get("low"), "high": row.get("high")}


def _alike(data: Data) -> Any:
    rows = []
    for row in data["alike"]:
        place = (row["other_layer"], row["other_head"])
        other = f"{place[0]}.{place[1]} of {data['alike_with']}" if row["other_of_model"] else head_anchor(data, *place)
        low, high = row.get("alike_low"), row.get("alike_high")
        interval = None if low is None else f"{short(low)}–{short(high)}"
        rows.append({"other": other, **{name: row.get(name) for name in _MEASURES}, "interval": interval})
    if not rows:
        return None
    told, pairs = "", data["alike_pairs"]
    if pairs:
        median, most = short(pairs["pair_median"]), short(pairs["pair_q95"])
        told = f" Half of all pairs have more than {median} of the first, 5 % more than {most}."
    names = {"pattern_off_sink": _MEASURES["pattern_off_sink"], "interval": "95 %", **_MEASURES}
    shown = {n: t for n, t in names.items() if any(row[n] is not None for row in rows)}
    note = (
        "By patterns on the same text (the interval is over sequences), and by the subspaces that its weights read and "
        f"write; 1 for the same.{told}"
    )
    drawn = table(rows, {"other": "head", **shown}, open_=True, summary="Most alike first")
    return card("Heads like this one", drawn, note=note, span=2)

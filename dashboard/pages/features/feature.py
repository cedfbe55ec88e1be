"""One feature: where it fires, which head and which source token made it, what it promotes."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from attlas.dashboard.components import (
    attributes,
    bars,
    button_link,
    card,
    columns,
    empty,
    example,
    heading,
    metric_cards,
    note_card,
    patches,
    short,
    table,
    tag,
)
from attlas.dashboard.components.maps import data_url, pixels_of
from attlas.dashboard.components.tokens import visible
from attlas.dashboard.notes import note_data, subject_of
from attlas.dashboard.page import Data, Page, Params, integer, link, parse
from attlas.dashboard.pages.features.families_view import beside_null, families_card
from attlas.dashboard.pages.features.labels import labels_card, labels_of
from attlas.dashboard.pages.features.sequence import whole_sequence
from attlas.dashboard.pages.features.table import chosen, order, without_problem
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.data.workspace import Run

STRATA = {
    "top": "Strongest",
    "q75": "Strongest quarter of its activations, drawn at random",
    "q50": "Between the median and the 75th percentile",
    "q25": "Between the 25th percentile and the median",
}

_TOKEN_NOTE = (
    "Tint: how strongly it fires on a token; the peak is underlined. Boxed: the source token that contributed most to "
    "the peak, by direct feature attribution."
)
_PATCH_NOTE = "Warm where it fires: activation on each patch, on one scale for all."


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Everything the workspace holds about a feature."""
    run = reader.pick("features", params.get("run"), params.get("model"))
    feature = integer(params, "id")
    base: Data = {"run": run.id if run else None, "feature": feature, "found": False, "model": params.get("model")}
    if run is None or feature is None:
        return base
    rows = reader.rows(run, "features", feature=feature)
    if not rows:
        return base
    # The list it was opened from, as the table's own URL.
    told, _ = without_problem(reader, run, parse(params.get("list") or "sort=feature"))
    before, after = reader.beside(run, feature, chosen(told), *order(told))
    parent = reader.made_from(run, "sae", "lorsa")
    extra: dict[str, list[Row]] = {
        name: reader.rows(run, name, ("rank",), feature=feature)
        for name in ("neighbours", "coactivation", "ngrams")
        if name in run.tables
    }
    sequence = integer(params, "sequence")
    return base | {
        "found": True,
        "sequence": sequence,
        "texts": reader.rows(run, "feature_texts", sequence=sequence) if sequence is not None else [],
        "has_texts": "feature_texts" in run.tables,
        "params": dict(params),
        "model": run.model.name,
        "hook": parent.summary.get("hook") if parent else run.summary.get("hook"),
        "qk_heads": run.summary.get("n_qk_heads"),
        "n_features": run.summary.get("n_features"),
        "sae": parent.id if parent and not run.summary.get("grid") else None,
        "labels": labels_of(reader, parent.id if parent else None, feature),
        "row": rows[0],
        "before": before[0] if before else None,
        "after": after[0] if after else None,
        "around": {"before": before, "after": after},
        "list": params.get("list"),
        "note": note_data(reader, subject_of(run, feature, {r.id for r in reader.runs("sae")})),
        "n_tokens": run.summary.get("n_tokens"),
        "heads": reader.rows(run, "heads", ("head",), feature=feature),
        "examples": reader.rows(run, "examples", ("stratum", "rank"), feature=feature),
        "histogram": reader.rows(run, "histogram", ("bin_left",), feature=feature),
        "logits": reader.rows(run, "logits", ("rank",), feature=feature),
        "has_output": bool(reader.rows(run, "logits", limit=1)),
        "tokens": reader.rows(run, "feature_tokens", ("rank",), feature=feature),
        "grid": run.summary.get("grid"),
        "pictures": _pictures(reader, run, feature),
        **extra,
    }


def _pictures(reader: WorkspaceReader, run: Run, feature: int) -> dict[str, str]:
    """PNG of each image among the feature's examples, by its number; empty for text."""
    arrays = reader.arrays(run, "pictures")
    if not arrays:
        return {}
    wanted = {r["sequence"] for r in reader.rows(run, "examples", feature=feature)}
    place = {int(image): i for i, image in enumerate(arrays["images"])}
    return {str(n): data_url(arrays["thumbnails"][place[n]]) for n in sorted(wanted) if n in place}


def view(data: Data, theme: Theme) -> Any:
    """Headline numbers, heads and logits side by side, the examples below."""
    if not data["found"]:
        return html.Div([heading("Feature"), _absent(data)])
    row = data["row"]
    here = {"run": data["run"], "list": data["list"], "model": data["model"]}
    extra = [
        _step("← Before", data["around"]["before"], here, "prev"),
        _step("After →", data["around"]["after"], here, "next"),
        button_link(
            "All features", f"/features?{data['list']}" if data["list"] else link("/features", run=data["run"])
        ),
    ]
    if data["sae"] is not None:
        steer = link("/steer", sae=data["sae"], feature=data["feature"], model=data["model"])
        extra.append(button_link("Steer", steer))
    extra.append(button_link("Compare", link("/compare", features=f"{data['run']}:{data['feature']}")))
    about = f"{data['hook'] or ''} of {data['model']}, measured on {short(data['n_tokens'])} tokens."
    return html.Div(
        [
            heading(f"Feature {data['feature']}", about, *extra),
            _numbers(row),
            html.Div([note_card(data["note"]), labels_card(data)], className="columns one"),
            columns(_heads(data, theme), _logits(data)),
            columns(_activations(data, theme), _tokens(data)),
            families_card(row),
            whole_sequence(data),
            _examples(data),
            *[_related(data, name) for name in ("neighbours", "coactivation", "ngrams") if data.get(name)],
        ],
        **attributes({"data-feature": str(data["feature"])}),
    )


def _step(text: str, ids: list[int], here: dict[str, Any], rel: str) -> Any:
    """A link to the next of these features; the [ and ] keys go along all of them without waiting for the page."""
    target = link("/feature", **here, id=ids[0]) if ids else None
    return html.Span(
        button_link(text, target), **attributes({"data-rel": rel, "data-ids": ",".join(str(i) for i in ids)})
    )


def _absent(data: Data) -> Any:
    if data["run"] is None:
        return empty("No features yet", "Interpret an autoencoder:", "attlas features")
    which = "No feature is chosen" if data["feature"] is None else f"There is no feature {data['feature']} in this run"
    return html.Div(
        [empty(which, "Pick one from the table.", "attlas features"), dcc.Link("All features", href="/features")]
    )


def _numbers(row: Row) -> Any:
    return metric_cards(
        [
            ("Density", row.get("density"), "share of tokens it is active on"),
            ("Active tokens", row.get("n_active"), ""),
            ("Mean activation", row.get("mean_act"), "where it is active"),
            ("Largest activation", row.get("max_act"), ""),
            ("Family", row.get("family") or "—", _family_note(row)),
        ]
    )


def _family_note(row: Row) -> str:
    if row.get("induction_null") is not None:
        return "see below: its scores beside their null"
    return (
        "not scored: that takes text, heads and three examples"
        if row.get("n_active")
        else "it never fired on this text"
    )


def _heads(data: Data, theme: Theme) -> Any:
    heads = data["heads"]
    if data["qk_heads"]:
        return _qk_head(data)
    if not heads:
        return card("Heads", html.P("This hook has no heads.", className="note"))
    top: dict[str, Any] = next((e for e in data["examples"] if e["stratum"] == "top"), {})
    parts = [
        bars(heads, "head", "share", theme, y_title="share of Σ ‖W_dec, head‖", height=210),
        table(heads, {"head": "head", "share": "share"}, summary="The numbers"),
    ]
    for column, constant, name in (
        ("dfa_heads", "dfa_constant", "pre-activation"),
        ("dfa_gate_heads", "dfa_gate_constant", "gate, which must be above 0 for it to fire"),
    ):
        values = [value for value in top.get(column) or [] if value is not None]
        if values:
            total = _sum(values, top.get(constant))
            rows = [{"head": i, "dfa": value} for i, value in enumerate(values)]
            parts += [
                html.P(f"On the strongest example: each head's part of the {name}{total}.", className="note"),
                bars(rows, "head", "dfa", theme, y_title="attribution", height=190),
            ]
    note = (
        "Head weight attribution: the norm of the decoder's slice of a head, as a share of the sum of all heads' norms."
    )
    return card("Which head writes it", *parts, note=note)


def _qk_head(data: Data) -> Any:
    """Which query–key head a Lorsa's feature looks with, and which features share it."""
    size = max(1, (data["n_features"] or 1) // data["qk_heads"])
    head = data["feature"] // size
    last = (head + 1) * size - 1
    told = (
        f"Query–key head {head} of {data['qk_heads']} of a Lorsa, shared by features {head * size} to {last}. Each has a value "
        "of its own, one number a token, and one direction that it writes."
    )
    return card(
        "Where it looks",
        html.P(told),
        note="Under each example: the z pattern, attention from the peak times the value of each source. It adds up to z.",
    )


def _sum(values: list[float], constant: float | None) -> str:
    """ ": heads a, biases b, together c", or nothing in runs that do not know what biases add."""
    if constant is None:
        return ""
    return f": heads {sum(values):.4g}, biases {constant:.4g}, together {sum(values) + constant:.4g}"


def _lines(*lines: str | None) -> list[Any]:
    return [html.P(line, className="note") for line in lines if line]


def _logits(data: Data) -> Any:
    rows = data["logits"]
    if not rows:
        dead = "It never fired on this data; effects are listed for features that do."
        headless = "The model is a backbone: it has no output tokens or classes."
        why = dead if data["has_output"] or not data["row"].get("n_active") else headless
        return card("What it does to the output", html.P(why, className="note"))
    scale = max(abs(r["effect"]) for r in rows) or 1.0

    def side(sign: str, title: str) -> html.Div:
        lines = [
            html.Div(
                [
                    html.I(style={"width": f"{100 * abs(r['effect']) / scale:.0f}%"}),
                    html.Code(visible(r["token"])),
                    html.Span(f"{r['effect']:+.2f}"),
                ],
                className=f"logit {'down' if sign == 'suppressed' else ''}",
            )
            for r in rows
            if r["sign"] == sign
        ]
        return html.Div([html.H3(title), *lines])

    both = html.Div([side("promoted", "promotes"), side("suppressed", "suppresses")], className="logits")
    return card(
        "What it does to the output",
        both,
        *_lines(beside_null(data["row"], "logit_z", "The largest, in standard deviations of all its effects")),
        note="Decoder through W_O and the unembedding, final norm folded; logits a unit of activation.",
    )


def _activations(data: Data, theme: Theme) -> Any:
    bins = data["histogram"]
    if not bins:
        return card("How strongly it fires", html.P("It never fired.", className="note"))
    rows = [{"bin": short(b["bin_left"]), "count": b["count"]} for b in bins]
    figure = bars(
        rows,
        "bin",
        "count",
        theme,
        x_title="activation (bin's lower edge, doubling every two bins)",
        y_title="tokens",
        height=230,
    )
    return card("How strongly it fires", figure, note="Activations above zero.")


def _tokens(data: Data) -> Any:
    rows = data["tokens"]
    if not rows:
        return None
    shown = [{"token": html.Code(visible(r["token"])), "share": r["share"], "n": r["n"]} for r in rows]
    names = {"token": "token", "share": "share of its activation", "n": "times"}
    return card(
        "Tokens it fires on",
        table(shown, names, summary="Tokens", open_=True),
        note="By their share of its summed activation.",
    )


def _examples(data: Data) -> Any:
    rows = data["examples"]
    if not rows:
        return card("Examples", html.P("It never fired on this text.", className="note"))
    scale = max(r["activation"] for r in rows)
    pictures = rows[0].get("tokens") is None or not rows[0]["tokens"]
    strata = dict.fromkeys(["top", *sorted({r["stratum"] for r in rows} - {"top"}, reverse=True)])
    parts: list[Any] = []
    for name in strata:
        chosen = [r for r in rows if r["stratum"] == name]
        told = bool(data["qk_heads"])
        items = [_picture(r, scale, data) if pictures else example(r, scale, _whole(data, r), told) for r in chosen]
        if items:
            parts += [
                html.Div([tag(STRATA.get(name, name), "accent" if name == "top" else "")], className="tags stratum"),
                html.Ul(items, className="examples images" if pictures else "examples"),
            ]
    return card("Where it fires", *parts, note=_PATCH_NOTE if pictures else _TOKEN_NOTE)


def _whole(data: Data, row: Row) -> Any:
    """A link to all of an example's sequence."""
    if not data["has_texts"]:
        return None
    href = link("/feature", **{**data["params"], "sequence": row["sequence"]})
    return dcc.Link("whole sequence", href=href, className="sub")


def _picture(row: Row, scale: float, data: Data) -> Any:
    grid = data.get("grid")
    shown = data["pictures"].get(str(row.get("sequence")))
    return patches(row, scale, tuple(grid) if grid else None, pixels_of(shown) if shown else None)


def _related(data: Data, name: str) -> Any:
    titles = {
        "neighbours": "Features that point alike",
        "coactivation": "Features that fire with it",
        "ngrams": "Phrases",
    }
    rows = data[name]
    fields = {k: k.replace("_", " ") for k in rows[0] if k not in ("feature", "rank")}
    shown = [
        {
            k: dcc.Link(str(r[k]), href=link("/feature", run=data["run"], id=r[k]))
            if k in ("other", "neighbour")
            else r[k]
            for k in fields
        }
        for r in rows
    ]
    line = {
        "neighbours": beside_null(data["row"], "neighbour_cosine", "The largest cosine"),
        "ngrams": beside_null(
            data["row"], "phrase", "Share of its strongest examples with their most common token, there or next"
        ),
    }.get(name)
    return card(titles[name], table(shown, fields, summary="Table", open_=True), *_lines(line))


PAGE = Page("/feature", "Feature", data, view, nav=False)

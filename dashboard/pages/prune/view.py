"""What the prune page looks like."""

from __future__ import annotations

from statistics import median
from typing import Any

from dash import dcc, html

from attlas.dashboard.components import (
    attributes,
    bars,
    button_link,
    card,
    columns,
    curve,
    empty,
    example,
    heading,
    heatmap,
    job_panel,
    metric_cards,
    picker,
    short,
    slider,
    table,
)
from attlas.dashboard.page import Data, link
from attlas.dashboard.reader import Row
from attlas.dashboard.theme import Theme

NAMES = {"attn": "attention", "mlp": "MLPs", "joint": "attention and MLPs", "block": "blocks", "head": "heads"}
ORDERS = (
    "ranked",
    "random",
    "last",
    "reversed",
    "iterative",
    "angular",
)  # a colour each; iterative shares that of ranked
ORDER_NAMES = {"ranked": "by score", "angular": "run, by angle"}
STATES = {
    "dead": "dead: active on less than a tenth of the tokens it was active on",
    "weaker": "weaker: the interval of the change lies below 0",
    "stronger": "stronger: the interval of the change lies above 0",
    "same": "same: no change that can be told",
    "absent": "absent: its module is gone",
    "rare": "rare: too few tokens to tell",
}


def view(data: Data, theme: Theme) -> Any:
    """The slider first, then scores, curves, pruned models and what they lost."""
    lead = "Which modules hardly matter, what dropping them costs beside controls, and what is lost with them."
    if not data["found"]:
        where = f" of {data['model']}" if data["model"] else ""
        command = f"attlas prune --model {data['model'] or 'gpt2-mini'}"
        return html.Div([heading("Prune", lead), empty(f"Nothing about pruning{where} yet", "Measure it:", command)])
    return html.Div(
        [
            heading(f"Prune {data['model']}", lead),
            _what_if(data),
            columns(_scores(data, theme), _curves(data, theme)),
            _control(data["control"]),
            _over_training(data["over_training"], theme),
            _pruned(data, theme),
            _side_effects(data, theme),
        ]
    )


# -- what if -----------------------------------------------------------------------------------------------------------


def _what_if(data: Data) -> Any:
    it = data["what_if"]
    if it is None:
        return empty("No scores yet", "The slider needs them:", f"attlas redundancy --model {data['model']} --alone")
    targets = [(t, NAMES[t]) for t in it["targets"]]
    here = {"model": data["model"], "target": it["target"], "n": it["n"]}
    if it["order"] != "ranked":
        here["order"] = it["order"]
    asked = it["measure"]
    button = button_link(
        "Measure it" if not asked else "Stop measuring", link("/prune", **here, measure=None if asked else 1)
    )
    measured = it["measured"]
    on = it["predicted_on"]
    runs = [f"{name} on {on[key]}" for key, name in (("sum_alone", "sum"), ("on_curve", "curve")) if on[key]]
    note = "Choose how many go; the most redundant go first."
    if it["order"] == "angular":
        note = "Choose how many go: the run of so many blocks that turns the last token least (Gromov et al. 2024)."
    note += f" Predicted from runs: {', '.join(runs)}." if runs else ""
    unit = measured["unit"] if measured else "nats"
    spread = f"{unit}, all dropped together"
    if measured:
        right = f"; right {measured['whole_accuracy']:.1%} → {measured['accuracy']:.1%}" if unit == "nats" else ""
        note = (
            f"All three on the same {measured['n_sequences']} sequences or images of {measured['data']} "
            f"({measured['hash']}), {measured['predictions']:,} predictions: {short(measured['whole_loss'])} {unit} whole, "
            f"{short(measured['loss'])} without{right}."
        )
        if measured["low"] is not None:
            spread = f"{unit}, 95 % {short(measured['low'])} to {short(measured['high'])}"
    numbers = [
        ("Predicted: sum of single costs", it["sum_alone"], f"{unit}, each dropped alone" if it["n"] else ""),
        ("Predicted: measured curve", it["on_curve"], f"{unit}, between its points"),
        ("Measured here", measured["delta"] if measured else None, spread),
    ]
    missing = None
    if it["sum_alone"] is None:
        flag = "--heads" if it["target"] == "head" else "--alone"
        missing = html.P(
            ["The sum needs what each costs alone: ", html.Code(f"attlas redundancy --model {data['model']} {flag}")],
            className="note",
        )
    gone = ", ".join(it["units"]) if it["units"] else "nothing"
    return card(
        "What if",
        html.Div(
            [slider("n", f"How many: {it['n']} of {it['n_max']}", it["n"], 0, it["n_max"], 1), button],
            className="controls",
        ),
        html.P(["Without ", html.B(gone, className="dropped")], className="note"),
        html.Div(metric_cards(numbers), className="what-if", **attributes({"aria-live": "polite"})),
        missing,
        job_panel(data["job"]),
        note=note,
        controls=[
            picker("target", "Drop", targets, it["target"], it["targets"][0]),
            picker("order", "Order", [(o, ORDER_NAMES[o]) for o in it["orders"]], it["order"], "ranked"),
        ],
        span=2,
    )


# -- scores and curves -------------------------------------------------------------------------------------------------


def _scores(data: Data, theme: Theme) -> Any:
    it = data["what_if"]
    if it is None:
        return None
    wanted = ("attn", "mlp") if it["target"] == "joint" else (it["target"],)
    rows = sorted((r for r in data["scores"] if r["target"] in wanted), key=lambda r: (r["score"], -r["layer"]))
    unit = "Δ loss (nats)" if it["target"] == "head" else "1 − cosine"
    names = {"unit": "module", "score": unit, "low": "low", "high": "high", "alone": "Δ loss alone"}
    return card(
        "Ranking",
        bars(rows[:60], "unit", "score", theme, group="target", x_title="most redundant first", y_title=unit),
        table(rows, names, summary="The numbers, with what each costs alone"),
        note=f"Scores of {NAMES[it['target']]}, 95 % bootstrap intervals over sequences; the slider drops from the left.",
    )


def series(rows: list[Row], value: str, show: str) -> dict[str, tuple[list[int], list[float]]]:
    """Lines of the plot by name; random draws as their median. Every line starts at the whole model."""
    dense = next((r[value] for r in rows if r["target"] == "none"), None)
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["target"] != "none" and show in ("all", row["target"]):
            line = found.setdefault(f"{row['target']}, {row['order']}", {})
            line.setdefault(row["n_dropped"], []).append(row[value])
    start = [] if dense is None else [(0, float(dense))]
    return {
        name: tuple(zip(*[*start, *((n, median(v)) for n, v in sorted(line.items()))], strict=True))  # type: ignore[misc]
        for name, line in found.items()
    }


def _control(rows: list[Row]) -> Any:
    """Each order beside the random sets of its count, over the page's width."""
    if not rows:
        return None
    names = {
        "target": "dropped",
        "order": "order",
        "n_dropped": "n",
        "delta": "Δ loss",
        "random_median": "random, median",
    }
    names |= {"random_min": "least", "random_max": "most", "sets": "sets that cost more", "excess": "random − order"}
    names |= {"low": "low", "high": "high", "n_sequences": "sequences"}
    shown = [
        row
        | {
            "sets": f"{row['n_draws'] - row['n_cheaper']} of {row['n_draws']}"
            + (" (all there are)" if row["n_draws"] == row["n_possible"] else "")
        }
        for row in rows
    ]
    numbers = table(shown, names, summary="On the same sequences, with 95 % intervals", open_=True)
    return card("Beside random sets", numbers, span=2)


def _curves(data: Data, theme: Theme) -> Any:
    rows: list[Row] = [r for r in data["curve"] if r.get("delta") is not None]
    if not rows:
        return empty("No curves yet", "Measure what dropping costs:", f"attlas prune --model {data['model']}")
    targets = list(dict.fromkeys(r["target"] for r in rows if r["target"] != "none"))
    value, title = data["value"], "Δ loss (nats)" if data["value"] == "delta" else "accuracy"
    controls: list[Any] = [
        picker("show", "Modules", [("all", "all"), *[(t, NAMES.get(t, t)) for t in targets]], data["show"], "all"),
        picker("value", "Value", [("delta", "Δ loss"), ("accuracy", "accuracy")], value, "delta"),
    ]
    if len(data["curve_runs"]) > 1:
        runs = [(r["id"], r["created"][:16].replace("T", " ")) for r in data["curve_runs"]]
        controls.append(picker("run", "Run", runs, data["curve_run"], runs[0][0]))
    names = {
        "target": "dropped",
        "order": "order",
        "draw": "draw",
        "n_dropped": "n",
        "delta": "Δ loss",
        "low": "low",
        "high": "high",
        "accuracy": "accuracy",
        "n_sequences": "sequences",
    }
    return card(
        "Cost of dropping",
        curve(
            series(rows, value, data["show"]),
            theme,
            x_title="modules dropped",
            y_title=title,
            height=380,
            marks=lambda name: (ORDERS.index(name.split(", ")[1]), targets.index(name.split(", ")[0])),
        ),
        table(rows, names, summary="Every point with its 95 % interval, random draws one by one"),
        note="Ranked orders beside controls: random (median of distinct sets, none of them the ranking's), the last layers "
        "first, and the reverse of the ranking. A colour is an order, a dash a kind of module.",
        controls=controls,
    )


def _over_training(rows: list[Row], theme: Theme) -> Any:
    if not rows:
        return None
    steps = sorted({r["step"] for r in rows})
    cells = [{"step": r["step"], "layer": r["layer"], "score": r["score"]} for r in rows if r["module"] == "attn"]
    lines = {
        name: (steps, [_mean(rows, step, module) for step in steps])
        for module, name in (("attn", "attention"), ("mlp", "MLPs"))
    }
    return columns(
        card(
            "Redundancy over training",
            curve(lines, theme, x_title="step", y_title="1 − cosine"),
            note="Mean score over layers at each checkpoint.",
        ),
        card(
            "Attention by layer",
            heatmap(cells, "score", theme, x="step", y="layer", unit="1 − cosine"),
            note="Is the order of layers there from the start?",
        ),
    )


def _mean(rows: list[Row], step: int, module: str) -> float:
    values = [r["score"] for r in rows if r["step"] == step and r["module"] == module]
    return sum(values) / len(values)


# -- pruned models -----------------------------------------------------------------------------------------------------


def _pruned(data: Data, theme: Theme) -> Any:
    rows: list[Row] = data["pruned"]
    if not rows:
        command = f"attlas prune --model {data['model']} --target attn --n 1 --what-dies --heal-steps 50 --to pruned"
        return empty("No pruned model yet", "Make one, heal it, and see what it lost:", command)
    s = data["pruned_summary"]
    runs = [(r["id"], f"without {r['dropped']}"[:48]) for r in rows]
    names = {"dropped": "dropped", "format": "format", "loss_before": "loss", "loss_after": "after"}
    names |= {
        "accuracy_before": "accuracy",
        "accuracy_after": "after ",
        "parameters_after": "parameters",
        "out": "folder",
    }
    healing = [r for r in data["healing"] if r.get("eval_loss") is not None]
    return columns(
        card(
            "Pruned models",
            metric_cards(
                [
                    ("Loss", _pair(s, "loss"), "nats, before → after"),
                    ("Accuracy", _pair(s, "accuracy"), "before → after"),
                    ("Parameters", _pair(s, "parameters"), "before → after"),
                    ("KV cache", _pair(s, "kv_bytes"), "bytes a token"),
                ]
            ),
            table(rows, names, summary="All pruned models", open_=len(rows) < 6),
            note=f"Without {', '.join(s.get('dropped') or [])}; {s.get('measured_on', '')}.",
            controls=picker("pruned", "", runs, data["pruned_run"], runs[0][0]) if len(runs) > 1 else None,
            span=1 if healing else 2,
        ),
        card(
            "Healing",
            curve(
                {"held-out loss": ([r["step"] for r in healing], [r["eval_loss"] for r in healing])},
                theme,
                x_title="steps",
                y_title="nats",
            ),
            note=str(s.get("healing", "")),
        )
        if healing
        else None,
    )


def _pair(summary: dict[str, Any], name: str) -> str | None:
    before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
    return None if before is None or after is None else f"{short(before)} → {short(after)}"


def _side_effects(data: Data, theme: Theme) -> Any:
    it = data["what_dies"]
    if not data["pruned"]:
        return None
    if it["run"] is None:
        command = f"attlas prune --model {data['model']} --drop … --what-dies --sae RUN"
        return empty("What this model lost is not measured", "Features, tasks and heads, before and after:", command)
    tasks = {"task": "task", "unit": "unit", "before": "before", "after": "after", "low": "Δ low", "high": "Δ high"}
    tasks |= {"accuracy_before": "right before", "accuracy_after": "right after", "able": "able before"}
    heads = {"layer": "layer", "head": "head", "induction_before": "induction", "induction_after": "after"}
    heads |= {"previous_token_before": "previous token", "previous_token_after": "after "}
    behaviours = card(
        "Behaviours lost",
        table(it["behaviours"], tasks, summary="Tasks with known answers", open_=True),
        table(it["heads"], heads, summary="Heads that change most", open_=True),
        note="Right less wrong answer, with the 95 % interval of the change over prompts; heads on random tokens repeated "
        "once. Before any healing.",
    )
    return html.Div([columns(behaviours, _lost_features(it, theme)), _lost_examples(it)])


def _lost_features(it: dict[str, Any], theme: Theme) -> Any:
    if not it["hooks"]:
        return None
    counts = [
        {"state": state, "autoencoder": hook, "features": it["features"][hook].get(state, 0)}
        for hook in it["hooks"]
        for state in STATES
    ]
    rows = [{**row, "link": _feature_link(it, row["feature"])} for row in it["rows"]]
    names = {"link" if len(rows) < 40 else "feature": "feature", "density_before": "density", "density_after": "after"}
    names |= {
        "mean_before": "mean activation",
        "mean_after": "after ",
        "size_before": "effect",
        "size_after": "after  ",
    }
    return card(
        "Features lost",
        bars(counts, "state", "features", theme, group="autoencoder", y_title="features", height=220),
        table(rows, names, summary=f"{len(rows)} features, the largest effects before first", open_=True),
        note=f"{STATES[it['state']]}. Effect: nats of a sequence's loss, to first order, over all its tokens.",
        controls=[
            picker("hook", "Autoencoder", [(h, h) for h in it["hooks"]], it["hook"], it["hooks"][-1]),
            picker("state", "State", [(s, s) for s in STATES], it["state"], "dead"),
        ],
    )


def _feature_link(it: dict[str, Any], feature: int) -> Any:
    if it["features_run"] is None:
        return feature
    return dcc.Link(str(feature), href=link("/feature", run=it["features_run"], id=feature))


def _lost_examples(it: dict[str, Any]) -> Any:
    shown = [row for row in it["examples"] if row.get("tokens") and row["rank"] == 0]
    if not shown:
        return None
    parts: list[Any] = []
    for row in shown:
        scale = max([*row["before"], *row["after"], 1e-9])
        name = html.H3([_feature_link(it, row["feature"])], **attributes({"aria-label": f"feature {row['feature']}"}))
        both = [example(_as_example(row, side), scale) for side in ("before", "after")]
        parts.append(html.Div([name, html.Ul(both, className="examples")]))
    return card(
        "Features that lose most, where they were strongest",
        html.Div(parts),
        note=f"{it['hook']}: each excerpt in the whole model, then without the dropped parts.",
        span=2,
    )


def _as_example(row: Row, side: str) -> Row:
    at = row["position"] - row["context_start"]
    values = row[side]
    return {
        **{k: row[k] for k in ("tokens", "sequence", "position", "context_start")},
        "activations": values,
        "activation": values[at] if 0 <= at < len(values) else None,
    }

"""Survey: what each head is for and how many unrelated things that is; two autoencoders beside one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dash import dcc, html

from attlas.dashboard.components import bars, card, columns, empty, heading, metric_cards, picker, short, table
from attlas.dashboard.page import Data, Page, Params, integer, link
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.dashboard.theme import Theme

MOST_ROWS = 25
# choice → (what is listed, how)
KINDS = {
    "absorbed": ("absorbed", "Where the feature fires and its match is silent, a split feature is active instead."),
    "split": ("split", "Two or more features of the second point its way."),
    "same": ("the same", "Each is the other's best match, with a high cosine."),
    "lost": ("without a match", "The largest cosine is lowest."),
}


# Numbers of a matching that stand beside those of its nulls → their names.
SHARES = {
    "same": "the same",
    "mean_cosine": "mean cosine",
    "split": "split",
    "absorbed": "absorbed",
    "mean_correlation": "mean correlation",
}


def data(reader: WorkspaceReader, params: Params) -> Data:
    """Heads of the newest survey with the chosen head's features; the newest matching with the chosen kind of rows."""
    run = reader.pick("head_survey", params.get("run"), params.get("model"))
    heads = reader.rows(run, "head_survey", ("layer", "head"))
    at = (integer(params, "layer"), integer(params, "head"))
    here = next((r for r in heads if (r["layer"], r["head"]) == at), heads[0] if heads else None)
    features: list[Row] = []
    if here is not None:
        where = {"layer": here["layer"], "head": here["head"]}
        features = reader.rows(run, "head_features", ("group", "rank"), **where)
    return {
        "model": run.model.name if run else params.get("model"),
        "run": run.id if run else None,
        "summary": run.summary if run else {},
        "heads": heads,
        "layer": here["layer"] if here else None,
        "head": here["head"] if here else None,
        "features": features,
        "features_run": _layer_features(reader, run, here["layer"]) if run and here else None,
        "matching": _matching(reader, params),
    }


def _matching(reader: WorkspaceReader, params: Params) -> Data | None:
    run = reader.pick("sae_matching", params.get("matching"), params.get("model"))
    if run is None or "sae_matches" not in run.tables:
        return None
    asked = params.get("kind", "")
    kind = asked if asked in KINDS else "absorbed"
    path = reader.workspace.table_path(run, "sae_matches")
    same = float((run.config or {}).get("same_cosine", 0.7))
    kinds = {  # which rows, in which order: counted by DuckDB, since there is one a feature
        "absorbed": ("absorbed >= 0.5 AND n_missed >= 10", "n_missed DESC"),
        "split": ("n_split > 1", "n_split DESC"),
        "same": (f"mutual AND cosine >= {same}", "cosine DESC"),
        "lost": (f"cosine < {same}", "cosine"),
    }
    shares = ", ".join(f"count(*) FILTER ({where}) AS {name}" for name, (where, _) in kinds.items())
    where, by = kinds[kind]
    listed = f"SELECT * FROM read_parquet(?) WHERE {where} ORDER BY {by}, feature LIMIT ?"
    first, second = (*run.parents, None, None)[:2]
    return {
        "run": run.id,
        "runs": [{"id": r.id, "created": r.created} for r in reader.runs("sae_matching", params.get("model"))],
        "kind": kind,
        "summary": run.summary,
        "counts": reader.query(f"SELECT {shares} FROM read_parquet(?)", [str(path)])[0],
        "rows": reader.query(listed, [str(path), MOST_ROWS]),
        "saes": [first, second],
        "features_runs": [_features_of(reader, first), _features_of(reader, second)],
        "cosine": _counts(reader, path, "cosine"),
        "control": _counts(reader, path, "control_cosine"),
    }


def _counts(reader: WorkspaceReader, path: Path, column: str) -> list[int]:
    """Features in each of twenty bins of a cosine, from 0 to 1."""
    sql = f'SELECT least(19, greatest(0, floor("{column}" * 20)))::INT AS bin, count(*) AS n FROM read_parquet(?) GROUP BY 1'
    found = {row["bin"]: row["n"] for row in reader.query(sql, [str(path)])}
    return [found.get(i, 0) for i in range(20)]


def _features_of(reader: WorkspaceReader, sae: str | None) -> str | None:
    """The newest features run of an autoencoder's run."""
    run = reader.features_run(sae)
    return run.id if run else None


def _layer_features(reader: WorkspaceReader, run: Any, layer: int) -> str | None:
    """The features run that describes the surveyed autoencoder of a layer."""
    for sae in reader.runs("sae"):
        if sae.id in run.parents and str(sae.summary.get("hook", "")).startswith(f"blocks.{layer}."):
            return _features_of(reader, sae.id)
    return None


def view(data: Data, theme: Theme) -> Any:
    """Heads with their control, one head's features in groups, then two autoencoders."""
    lead = (
        "Each head's top features, grouped by what they write and when they fire: is a head for one thing, or for many?"
    )
    parts: list[Any] = [heading("Survey", lead)]
    if data["heads"]:
        parts += [_numbers(data), _groups(data, theme), _one_head(data)]  # words need the whole width
    else:
        parts.append(
            empty("No survey of heads yet", "Group what each head is for:", "attlas features survey --model gpt2-mini")
        )
    found = data["matching"]
    if found is None:
        why = "Train a second autoencoder on a hook, then compare:"
        parts.append(empty("No two autoencoders compared yet", why, "attlas features match --sae RUN --other RUN"))
    else:
        parts.append(columns(_match_card(found, theme), _match_table(found)))
    return html.Div(parts)


def _numbers(data: Data) -> Any:
    s = data["summary"]
    low, high = s.get("polysemantic_low"), s.get("polysemantic_high")
    interval = "too few for an interval" if low is None else f"95 % interval of the share {short(low)} to {short(high)}"
    verdicts = [r.get("verdict") for r in data["heads"]]
    n, judged = len(verdicts), any(verdicts)
    return metric_cards(
        [
            ("Polysemantic heads", f"{verdicts.count('polysemantic')} of {n}" if judged else None, interval),
            (
                "Coherent heads",
                f"{verdicts.count('coherent')} of {n}" if judged else None,
                "fewer groups than by chance",
            ),
            ("Groups a head", s.get("mean_groups"), "mean over heads"),
            ("Random dictionaries", s.get("mean_groups_null"), "with the same head norms and density"),
            ("At random", s.get("mean_groups_control"), "as many features of the same autoencoder"),
            ("Tokens", s.get("n_tokens"), "read"),
        ]
    )


def _groups(data: Data, theme: Theme) -> Any:
    rows = []
    for r in data["heads"]:
        name = {"name": f"{r['layer']}.{r['head']}"}
        rows.append(name | {"of": "its top features", "groups": r["n_groups"], "low": None, "high": None})
    for r in data["heads"]:
        if r.get("null_groups") is not None:
            name = {"name": f"{r['layer']}.{r['head']}", "of": "random dictionaries"}
            rows.append(name | {"groups": r["null_groups"], "low": r["null_low"], "high": r["null_high"]})
    names = {
        "layer": "layer",
        "head": "head",
        "n_features": "features",
        "n_groups": "groups",
        "largest_group": "largest group",
        "null_groups": "random, mean",
        "null_low": "2.5 %",
        "null_high": "97.5 %",
        "excess": "excess",
        "excess_low": "95 % low",
        "excess_high": "high",
        "verdict": "verdict",
        "control_groups": "drawn at random",
    }
    return card(
        "Groups of each head",
        bars(rows, "name", "groups", theme, group="of", x_title="layer.head", y_title="groups"),
        table(data["heads"], names, summary="The numbers"),
        note="One group: the head's top features belong together. Beside it random dictionaries of the same head norms and "
        "density (whiskers: 95 % of them): polysemantic is a head with more groups than those, coherent one with fewer. "
        "Drawn at random: as many features of the same autoencoder.",
    )


def _one_head(data: Data) -> Any:
    run = data["features_run"]
    heads = [(r["layer"], r["head"], r["n_groups"]) for r in data["heads"]]
    others = [
        dcc.Link(
            f"{layer}.{head}",
            href=link("/survey", run=data["run"], layer=layer, head=head),
            className="tag" + (" accent" if (layer, head) == (data["layer"], data["head"]) else ""),
            title=f"{n} groups",
        )
        for layer, head, n in heads
    ]
    rows = [
        {
            "group": r["group"],
            "feature": _to_feature(run, r["feature"]),
            "share": r["share"],
            "density": r["density"],
            "tokens": r["top_tokens"],
            "promoted": r["promoted"],
        }
        for r in data["features"]
    ]
    names = {
        "group": "group",
        "feature": "feature",
        "share": "head's share",
        "density": "density",
        "tokens": "fires on",
        "promoted": "promotes",
    }
    return card(
        f"Head {data['layer']}.{data['head']}",
        html.Div(others, className="tags"),
        table(rows, names, summary="Its top features", open_=True),
        note="Features with the largest part of their decoder row in this head; the same number, the same group.",
    )


def _to_feature(run: str | None, feature: int) -> Any:
    return str(feature) if run is None else dcc.Link(str(feature), href=link("/feature", run=run, id=feature))


def _match_card(found: Data, theme: Theme) -> Any:
    rows = [
        {"cosine": f"{i / 20:.2f}", "of": name, "features": n}
        for name, counts in (("best match", found["cosine"]), ("random directions", found["control"]))
        for i, n in enumerate(counts)
    ]
    s = found["summary"]
    sizes = " and ".join(f"{n:,}" for n in s.get("d_sae", []))
    runs = [(r["id"], r["created"][:16].replace("T", " ")) for r in found["runs"]]
    switch = picker("matching", "", runs, found["run"], runs[0][0]) if len(runs) > 1 else None
    return card(
        "Two autoencoders",
        bars(rows, "cosine", "features", theme, group="of", x_title="decoder cosine, from", y_title="features"),
        html.P(
            f"{short(s.get('same'))} of the first's {s.get('n_active_features'):,} active features are the same in the "
            f"second, {short(s.get('split'))} split, {short(s.get('absorbed'))} absorbed.{_beyond(s)}",
            className="note",
        ),
        _nulls(s),
        note=f"{found['saes'][0] or 'the first'} beside {found['saes'][1] or 'the second'}: {sizes} features, "
        f"{s.get('n_tokens', 0):,} tokens. Best match of each feature by decoder cosine, beside random directions.",
        controls=switch,
    )


def _beyond(s: Row) -> str:
    """How many cosines random directions do not reach, in a sentence; nothing for runs that do not hold it."""
    if s.get("beyond_control") is None:
        return ""
    return (
        f" {short(s['beyond_control'])} have a cosine beyond {short(s.get('cosine_control_q95'))}, the 95th percentile "
        "with random directions of the same head norms."
    )


def _nulls(s: Row) -> Any:
    """The shares and means beside those with null dictionaries; older runs hold some of them."""
    rows = [
        {"what": what, "value": s.get(key), "random": s.get(f"{key}_control"), "shuffled": s.get(f"{key}_shuffled")}
        for key, what in SHARES.items()
        if s.get(f"{key}_control") is not None
    ]
    names = {"what": "", "value": "the second", "random": "random directions", "shuffled": "its rows shuffled"}
    return table(rows, names, summary="Beside null dictionaries", open_=True)


def _match_table(found: Data) -> Any:
    first, second = found["features_runs"]
    rows = [
        {
            "feature": _to_feature(first, r["feature"]),
            "match": _to_feature(second, r["match"]),
            "cosine": r["cosine"],
            "correlation": r["correlation"],
            "n_split": r["n_split"],
            "n_missed": r["n_missed"],
            "absorbed": r["absorbed"],
        }
        for r in found["rows"]
    ]
    names = {
        "feature": "feature",
        "match": "match",
        "cosine": "cosine",
        "correlation": "correlation",
        "n_split": "split in",
        "n_missed": "missed on",
        "absorbed": "absorbed",
    }
    kind = found["kind"]
    options = [(name, f"{KINDS[name][0]} ({found['counts'][name]:,})") for name in KINDS]
    nothing = html.P(f"No feature is {KINDS[kind][0]}.", className="note")
    return card(
        f"Features that are {KINDS[kind][0]}",
        table(rows, names, summary=f"The first {len(rows)}", open_=True) if rows else nothing,
        note=KINDS[kind][1] + " Missed: tokens on which it fires and its match does not.",
        controls=picker("kind", "", options, kind, "absorbed"),
    )


PAGE = Page("/survey", "Survey", data, view)

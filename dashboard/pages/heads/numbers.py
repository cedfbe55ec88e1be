"""Every number a head has anywhere in the workspace: one row a head, from the newest run of each kind about its model."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow.parquet as pq

from attlas.dashboard.pages.heads.metrics import METRICS, head_rows, named
from attlas.dashboard.reader import Row, WorkspaceReader
from attlas.data.workspace import Run

# Kinds whose tables have a row a head, then those with several, spread into columns: (kind, table, names, value).
_PLAIN = (
    ("head_survey", "head_survey"),
    ("vit", "strength"),
    ("head_weights", "head_weights"),
    ("head_logits", "head_logits"),
    ("head_similar", "head_clusters"),
)
_SPREAD = (
    ("heads", "head_account", ("rule",), "share"),
    ("head_effects", "head_effects", ("ablation",), "delta"),
    ("vit", "importance", ("metric", "ablation"), "value"),
)
OTHER_KINDS = ("head_effects", "vit", "head_weights", "head_logits", "head_similar", "timeline")
_TITLES = {"head_account": "Spent on", "head_effects": "Δ loss,", "importance": "Importance,"}
_NO_NUMBERS = {"layer", "head", "n_queries", "n_sequences", "n_images", "low", "high", "of_model", "centre"}
_NO_SLOPE = {"layer", "head", "step", "checkpoint", "loss", "repeat_loss", "n_queries"}
_HOOK = re.compile(r"blocks\.(\d+)\.attn\.hook_z")


@dataclass(frozen=True)
class Number:
    """A number that heads have.

    Attributes:
        name: its column.
        title: for people.
        unit: "" for none.
        meaning: one line.
        run: id of the run that it is from.
    """

    name: str
    title: str
    unit: str
    meaning: str
    run: str


@dataclass
class Heads:
    """Rows of a model's heads, by place, and what their numbers are."""

    rows: dict[tuple[int, int], Row]
    numbers: dict[str, Number]

    def add(self, number: Number, values: dict[tuple[int, int], object]) -> None:
        """Take a column in; where two runs have it, the first counts."""
        if number.name in self.numbers or not any(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in values.values()
        ):
            return
        self.numbers[number.name] = number
        for place, value in values.items():
            row = self.rows.setdefault(place, {"layer": place[0], "head": place[1]})
            row[number.name] = value


def with_atlas(
    reader: WorkspaceReader, run: Run | None, rows: list[Row], names: list[str]
) -> tuple[list[Row], list[str]]:
    """Rows of heads and their numbers' names with those of table heads taken in; numbers that are there stay."""
    found = {(row["layer"], row["head"]): row for row in rows}
    more = [name for name in _fields(reader, run, "heads") if name not in _NO_NUMBERS and name in METRICS]
    for row in reader.rows(run, "heads", ("layer", "head")):
        mine = found.setdefault((row["layer"], row["head"]), {"layer": row["layer"], "head": row["head"]})
        mine |= {name: row[name] for name in more if mine.get(name) is None}
    names = [*names, *(name for name in more if name not in names)]
    rows = [found[place] for place in sorted(found)]
    return rows, [name for name in names if any(row.get(name) is not None for row in rows)]


def all_numbers(reader: WorkspaceReader, model: str, run: Run | None) -> Heads:
    """Every number of a model's heads; `run`, of kind heads, comes before the newest runs of the other kinds."""
    found = Heads({}, {})
    _plain(found, reader, run, "heads")
    _scores(found, reader, model)
    for kind, table in _PLAIN:
        _plain(found, reader, reader.pick(kind, None, model), table)
    for kind, table, names, value in _SPREAD:
        _spread(found, reader, run if kind == "heads" else reader.pick(kind, None, model), table, names, value)
    _composition(found, reader, model)
    _slopes(found, reader, model)
    _redundancy(found, reader, model)
    _features(found, reader, model)
    found.rows = {place: found.rows[place] for place in sorted(found.rows)}
    return found


def _fields(reader: WorkspaceReader, run: Run | None, table: str) -> dict[str, tuple[str, str]]:
    """Column → (unit, description), as the file itself says."""
    path = reader.table_file(run, table)
    if path is None:
        return {}
    schema = pq.read_schema(path)
    told = {field.name: field.metadata or {} for field in schema}
    return {name: (m.get(b"unit", b"").decode(), m.get(b"description", b"").decode()) for name, m in told.items()}


def titled(name: str) -> str:
    """A column's name for people."""
    return METRICS[name][0] if name in METRICS else name.replace("_", " ").capitalize()


def _plain(found: Heads, reader: WorkspaceReader, run: Run | None, table: str) -> None:
    if run is None:
        return
    rows = [row for row in reader.rows(run, table, ("layer", "head")) if not row.get("of_model")]
    for name, (unit, meaning) in _fields(reader, run, table).items():
        if name not in _NO_NUMBERS:
            values = {(r["layer"], r["head"]): r[name] for r in rows}
            found.add(Number(name, titled(name), unit, meaning, run.id), values)


def _scores(found: Heads, reader: WorkspaceReader, model: str) -> None:
    """Of entropy and anatomy, with masses within windows and on the largest keys."""
    entropy, anatomy = reader.pick("entropy", None, model), reader.pick("anatomy", None, model)
    rows, names = head_rows(reader, entropy, anatomy)
    from_entropy = {"entropy", *_fields(reader, entropy, "head_entropy")}
    for name in names:
        source = entropy if name in from_entropy else anatomy
        title, unit, meaning = _named(name)
        number = Number(name, title, unit, meaning, source.id if source else "")
        found.add(number, {(r["layer"], r["head"]): r.get(name) for r in rows})
    for row in rows:
        if row.get("label"):
            found.rows[row["layer"], row["head"]]["label"] = row["label"]


def _named(name: str) -> tuple[str, str, str]:
    title, unit, meaning = named(name)
    return ("Score of its label" if name == "label_score" else title), unit, meaning


def _spread(
    found: Heads, reader: WorkspaceReader, run: Run | None, table: str, names: tuple[str, ...], value: str
) -> None:
    if run is None:
        return
    unit, meaning = _fields(reader, run, table).get(value, ("", ""))
    columns: dict[str, dict[tuple[int, int], object]] = {}
    for row in reader.rows(run, table, limit=200_000):
        what = ", ".join(str(row[name]) for name in names)
        columns.setdefault(what, {})[row["layer"], row["head"]] = row[value]
    for what, values in columns.items():
        title = f"{_TITLES[table]} {what.replace('_', ' ')}"
        found.add(Number(f"{value}: {what}", title, unit, meaning, run.id), values)


def _composition(found: Heads, reader: WorkspaceReader, model: str) -> None:
    """The strongest composition with a head of an earlier layer, over that of random heads."""
    run = reader.pick("head_weights", None, model)
    path = reader.table_file(run, "head_composition")
    if run is None or path is None:
        return
    most = ", ".join(f"max({kind}_composition / random) AS {kind}" for kind in "qkv")
    rows = reader.query(f"SELECT layer, head, {most} FROM read_parquet(?) GROUP BY 1, 2", [str(path)])
    for kind in "qkv":
        meaning = (
            f"the strongest {kind.upper()}-composition with a head of an earlier layer, over the mean of random heads"
        )
        number = Number(f"composition: {kind}", f"{kind.upper()}-composition", "× random", meaning, run.id)
        found.add(number, {(r["layer"], r["head"]): r[kind] for r in rows})


def _slopes(found: Heads, reader: WorkspaceReader, model: str) -> None:
    """How each score of the history over checkpoints rises or falls: least squares over steps."""
    run = reader.pick("timeline", None, model)
    path = reader.table_file(run, "timeline")
    if run is None or path is None:
        return
    told = {n: t for n, t in _fields(reader, run, "timeline").items() if n not in _NO_SLOPE and not n.endswith("_null")}
    names = [name for name in reader.columns(run, "timeline") if name in told]
    slopes = ", ".join(f'1000 * regr_slope("{name}", step) AS "{name}"' for name in names)
    rows = reader.query(f"SELECT layer, head, {slopes} FROM read_parquet(?) GROUP BY 1, 2", [str(path)])
    for name in names:
        title, (unit, meaning) = f"Over training, {titled(name).lower()}", told[name]
        number = Number(
            f"slope: {name}", title, f"{unit} per 1,000 steps", f"slope over checkpoints: {meaning}", run.id
        )
        found.add(number, {(r["layer"], r["head"]): r[name] for r in rows})


def _redundancy(found: Heads, reader: WorkspaceReader, model: str) -> None:
    run = reader.pick("redundancy", None, model)
    rows = reader.rows(run, "redundancy", module="attn") if run else []
    by_layer = {row["layer"]: row["score"] for row in rows}
    if run and by_layer:
        number = Number(
            "layer_redundancy", "Its layer turns", "1 − cosine", "1 − cosine of its attention layer's ends", run.id
        )
        found.add(number, {place: by_layer.get(place[0]) for place in found.rows})


def _features(found: Heads, reader: WorkspaceReader, model: str) -> None:
    """Features, active somewhere, of autoencoders on z whose decoder row is mostly this head's."""
    values: dict[tuple[int, int], object] = {}
    newest: dict[int, Run] = {}
    hooks = {run.id: str(run.summary.get("hook", "")) for run in reader.runs("sae", model)}
    for run in reader.runs("features", model):
        at = _HOOK.fullmatch(next((hooks[parent] for parent in run.parents if parent in hooks), ""))
        if at:
            newest.setdefault(int(at[1]), run)
    for layer, run in newest.items():
        counts = {
            row["top_head"]: row["n"]
            for row in reader.query(
                "SELECT top_head, count(*) AS n FROM read_parquet(?) WHERE density > 0 GROUP BY 1",
                [str(reader.table_file(run, "features"))],
            )
        }
        values |= {place: counts.get(place[1], 0) for place in found.rows if place[0] == layer}
    if values:
        meaning = "features, active somewhere, of the autoencoder on its layer whose decoder row is mostly this head's"
        found.add(Number("n_top_features", "Features", "features", meaning, next(iter(newest.values())).id), values)

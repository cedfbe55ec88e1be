"""What the features of a circuit are called: a person's label, else the token they fire on most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attlas.dashboard.components.tokens import visible
from attlas.dashboard.feature_filter import FeatureFilter
from attlas.dashboard.notes import labels
from attlas.dashboard.page import Data
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.workspace import Run

MOST = 26  # characters of a name in a graph


def told_by_layer(found: Data) -> dict[int, str]:
    """Layer → run that interprets the features of the autoencoder that the page has chosen there."""
    return {int(layer): found["told"][run] for layer, run in found["saes"].items() if run in found["told"]}


def feature_names(
    reader: WorkspaceReader, told: Mapping[int, str], wanted: Iterable[tuple[int, int]]
) -> dict[str, str]:
    """ "layer/feature" → its name, where there is one.

    Args:
        told: layer → id of the run that interprets the features of that layer's autoencoder.
        wanted: (layer, feature) pairs.
    """
    by_layer: dict[int, set[int]] = {}
    for layer, feature in wanted:
        by_layer.setdefault(layer, set()).add(feature)
    runs = {run.id: run for run in reader.runs("features")} if by_layer else {}
    found: dict[str, str] = {}
    for layer, features in by_layer.items():
        run = runs.get(told.get(layer, ""))
        if run is not None:
            found |= {f"{layer}/{feature}": name for feature, name in _of_run(reader, run, features).items()}
    return found


def _of_run(reader: WorkspaceReader, run: Run, features: set[int]) -> dict[int, str]:
    noted = labels(reader, run)
    rows, _ = reader.features_page(run, FeatureFilter(among=tuple(sorted(features))), limit=1000)
    found: dict[int, str] = {}
    for row in rows:
        note = noted.get(row["feature"])
        first = (row.get("top_tokens") or "").split(" | ")[0]
        name = note["label"] if note and note["label"] else f"“{visible(first.strip() or first)}”" if first else ""
        if name:
            found[row["feature"]] = name if len(name) <= MOST else name[: MOST - 1] + "…"
    return found

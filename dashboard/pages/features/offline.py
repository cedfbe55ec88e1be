"""Features of a run as one HTML file that needs no server and no network: a table, and each feature's page behind its row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dash import html

from attlas.dashboard.as_file import document, packed, still, table_html
from attlas.dashboard.components import card, heading
from attlas.dashboard.feature_filter import FeatureFilter
from attlas.dashboard.notes import labels, shown
from attlas.dashboard.pages.features import feature as feature_page
from attlas.dashboard.pages.features.table import COLUMNS
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.theme import theme
from attlas.data.files import write_text_atomic
from attlas.data.progress import Track, no_track
from attlas.data.workspace import Run
from attlas.errors import ConfigError


def save_features(
    reader: WorkspaceReader,
    run: Run,
    path: Path,
    features: Sequence[int] = (),
    n_features: int = 300,
    mode: str = "light",
    figures: bool = True,
    track: Track = no_track,
) -> int:
    """Write features of a run of `features` as one file.

    Args:
        features: which; when empty the `n_features` with the largest activation.
        mode: "light" or "dark".
        figures: keep figures, with 4.8 MB of Plotly in the file.

    Returns: bytes written.

    Raises:
        ConfigError: a run of another kind, or a feature that it lacks.
    """
    if run.kind != "features":
        raise ConfigError(f"{run.id} is a run of {run.kind}; give one of features (attlas features)")
    among = FeatureFilter(among=tuple(features) or None)
    rows: list[dict[str, Any]] = []
    wanted = len(set(features)) or n_features
    while len(rows) < wanted:  # the reader gives at most 1,000 at once
        found, _ = reader.features_page(run, among, "max_act", True, len(rows), min(1000, wanted - len(rows)))
        if not found:
            break
        rows += found
    missing = set(features) - {row["feature"] for row in rows}
    if missing:
        raise ConfigError(f"{run.id} has no feature {min(missing)}; it has {run.summary.get('n_features')}, from 0 on")
    notes = labels(reader, run)
    rows = [row | {"note": shown(notes.get(row["feature"]))} for row in rows]
    blocks = []
    for row in track(rows, "features"):
        data = clean(feature_page.data(reader, {"run": run.id, "id": str(row["feature"])}))
        html_ = still(feature_page.view(data, theme(mode)), figures)
        blocks.append(packed(html_, data_block=str(row["feature"])))
    there = {field for row in rows for field, value in row.items() if value not in (None, "")}
    columns = [(field, name) for field, name, _ in COLUMNS if field in there or field == "feature"]
    write_text_atomic(path, _document(reader, run, rows, columns, blocks, mode, figures))
    return path.stat().st_size


def _document(
    reader: WorkspaceReader,
    run: Run,
    rows: list[dict[str, Any]],
    columns: list[tuple[str, str]],
    blocks: list[str],
    mode: str,
    figures: bool,
) -> str:
    parent = reader.made_from(run, "sae")
    hook = parent.summary.get("hook") if parent else None
    about = (
        f"{hook or 'features'} of {run.model.name}, measured on {run.summary.get('n_tokens'):,} tokens of "
        f"{run.data.name if run.data else 'its data'}; {len(rows):,} of {run.summary.get('n_features'):,} features. "
        f"Run {run.id}, Attlas {run.attlas_version}."
    )
    head = still(heading("Features", about))
    listed = still(card("These features", html.Div("TABLE"), note="A row opens the feature below; a heading sorts."))
    body = head + listed.replace("<div>TABLE</div>", table_html(rows, columns, "feature")) + '<div id="opened"></div>'
    return document(f"Features of {run.model.name}", body, mode, blocks, figures)

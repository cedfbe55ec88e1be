"""The training curve: rows in memory for the result, and a JSON-lines file that grows while training runs.

The file lies in `<workspace>/.training/<key>/training.jsonl`; `live_runs` lists such files, so that the dashboard can
show a run that is not finished. Its columns are those of `TRAINING`, and "sae", the name of the SAE.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from attlas.data.disk import disk_errors
from attlas.data.schema import TableSchema, column
from attlas.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from attlas.saes.base import LossTerms

TRAINING = TableSchema(
    "training",
    "one logged step of one SAE",
    (
        column("hook", pa.string(), "", "hook whose activations it reads"),
        column("step", pa.int32(), "steps", "optimiser steps done"),
        column("tokens", pa.int64(), "tokens", "activations trained on so far"),
        column("loss", pa.float64(), "", "total training loss of the batch (activations scaled to E|x| = sqrt(d_in))"),
        column("mse", pa.float64(), "", "sum over dimensions of squared error, mean over the batch, same scale"),
        column("penalty", pa.float64(), "", "every other addend of the loss: sparsity, AuxK, nested or gate losses"),
        column("l0", pa.float64(), "features", "active features a token, mean over the batch"),
        column("explained_variance", pa.float64(), "fraction", "1 − squared error / variance about the batch's mean"),
        column("dead_fraction", pa.float64(), "fraction", "features silent for the last `dead_after` tokens, of d_sae"),
        column("learning_rate", pa.float64(), "", "of the step"),
        column("tokens_per_second", pa.float64(), "tokens/s", "since the previous row, capture included, all SAEs"),
        column("data_fraction", pa.float64(), "fraction", "time since the previous row in the data: reading, mixing"),
        column("model_fraction", pa.float64(), "fraction", "time since the previous row in the model"),
        column("sae_fraction", pa.float64(), "fraction", "time since the previous row in the steps of all SAEs"),
    ),
)

SWEEP_TRAINING = TableSchema(
    "training",
    "one logged step of one SAE of the sweep",
    (column("sae", pa.string(), "", "its name in table pareto"), *TRAINING.columns),
)

TIMES = ("data_fraction", "model_fraction", "sae_fraction")
"""Columns that curves of earlier versions lack."""

LIVE_FILE = "training.jsonl"


def curve_row(terms: LossTerms, x_BD: Tensor, dead_F: Tensor, step: int, tokens: int, rate: float) -> dict[str, Any]:
    """What `TRAINING` tells of a batch `x_BD` to be reconstructed, after `step` steps and `tokens` tokens."""
    loss, mse = float(terms.total.detach()), float(terms.terms["mse"])
    variance = float((x_BD - x_BD.mean(0)).pow(2).sum(-1).mean())
    return {
        "step": step,
        "tokens": tokens,
        "loss": loss,
        "mse": mse,
        "penalty": loss - mse,
        "l0": float(terms.l0),
        "explained_variance": 1 - mse / max(variance, 1e-30),
        "dead_fraction": float(dead_F.float().mean()),
        "learning_rate": rate,
    }


class History:
    """Collect rows; with a folder, append each to its `training.jsonl` too."""

    def __init__(self, folder: Path | None, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows: list[dict[str, Any]] = list(rows or [])
        self._path = folder / LIVE_FILE if folder is not None else None
        if self._path is not None:
            with disk_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._path is None:
            return
        try:
            with disk_errors(self._path), open(self._path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        except StorageError as error:  # the training is worth more than its curve on disk
            warnings.warn(f"{error}; training goes on, its live curve ends here", stacklevel=2)
            self._path = None

    def of(self, name: str) -> list[dict[str, Any]]:
        """The rows of one SAE."""
        return [row for row in self.rows if row["sae"] == name]


@dataclass(frozen=True)
class LiveRun:
    """A training run that has a curve on disk and is not yet (or never was) committed to the workspace."""

    key: str
    path: Path
    rows: list[dict[str, Any]]


def live_folder(workspace: Path, key: str) -> Path:
    """Where a run keeps its curve and checkpoint until it is committed."""
    return workspace / ".training" / key


def live_runs(workspace: str | Path) -> list[LiveRun]:
    """Unfinished training runs of a workspace, the newest first; a half-written last line is left out."""
    found = []
    needed = {column.name for column in TRAINING.columns if not column.name.endswith(TIMES)}
    for path in Path(workspace).glob(f".training/*/{LIVE_FILE}"):
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.keys() >= needed:
                rows.append(row)
        found.append(LiveRun(path.parent.name, path, rows))
    return sorted(found, key=lambda run: run.path.stat().st_mtime, reverse=True)

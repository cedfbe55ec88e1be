"""What training found: one result an autoencoder, and those of one pass over the data together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from attlas.data.result import Result
from attlas.data.runs.record import Ref, Run
from attlas.data.workspace import Workspace
from attlas.saes.base import SAE
from attlas.saes.plots import training_figure
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.history import TRAINING, History

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class TrainedSAE(Result):
    """One trained SAE and its curve; in a workspace a run of kind "sae", with the SAE in `sae/`.

    Attributes:
        sae: in evaluation mode, normalisation folded in.
        config: of the run, with this SAE's hook alone.
        model_ref, data_ref: what it was trained on.
        rows: of its curve (schema `TRAINING`, and the SAE's name).
        rank: dimension of the subspace that the decoder started in.
        rate: peak learning rate, resolved where the configuration gave none.
    """

    kind: ClassVar[str] = "sae"

    sae: SAE
    config: TrainConfig
    model_ref: Ref
    data_ref: Ref
    rows: tuple[dict[str, Any], ...]
    rank: int
    rate: float

    def tables(self) -> dict[str, pa.Table]:
        """The table training, a row a logged step."""
        return {"training": TRAINING.table(self.rows)}

    def summary(self) -> dict[str, Any]:
        """The last row of the curve, with the SAE's sizes."""
        kept = ("loss", "l0", "explained_variance", "dead_fraction", "tokens")
        return {
            **self.sae.metadata(),
            **{name: self.rows[-1][name] for name in kept},
            "start_rank": self.rank,
            "learning_rate": self.rate,
        }

    def plot(self) -> go.Figure:
        """Explained variance, L0, dead fraction and loss against tokens."""
        return training_figure(list(self.rows))

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model_ref, self.data_ref

    def _files(self) -> dict[str, Callable[[Path], Any]]:
        return {"sae": self.sae.save}


@dataclass(frozen=True)
class TrainResult:
    """SAEs trained in one pass over the data, by hook: a result each, saved as a run each.

    Attributes:
        saes: hook → SAE, in evaluation mode, normalisation folded in.
        config: of the run.
        model_ref: the model trained on.
        data_ref: the text or images.
        history: curve rows.
        ranks: hook → dimension of the subspace the decoder started in.
        rates: hook → peak learning rate, resolved where the configuration gave none.
    """

    saes: dict[str, SAE]
    config: TrainConfig
    model_ref: Ref
    data_ref: Ref
    history: History
    ranks: dict[str, int]
    rates: dict[str, float]

    def of(self, hook: str) -> TrainedSAE:
        """The result of one hook."""
        return TrainedSAE(
            self.saes[hook],
            dataclasses.replace(self.config, hooks=(hook,)),
            self.model_ref,
            self.data_ref,
            tuple(row for row in self.history.rows if row["hook"] == hook),
            self.ranks[hook],
            self.rates[hook],
        )

    def table(self, hook: str | None = None) -> pa.Table:
        """The training curve of one hook, or of all (schema `TRAINING`)."""
        return TRAINING.table([row for row in self.history.rows if hook in (None, row["hook"])])

    def summary(self, hook: str | None = None) -> dict[str, Any]:
        """The last row of the curve with the SAE's sizes; of all hooks, hook → that."""
        return {name: self.summary(name) for name in self.saes} if hook is None else self.of(hook).summary()

    def plot(self) -> go.Figure:
        """Explained variance, L0, dead fraction and loss against tokens, a line a hook."""
        return training_figure(self.history.rows)

    def save(self, workspace: Workspace | str | Path) -> list[Run]:
        """Save every SAE's own result: one run of kind "sae" a hook."""
        workspace = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
        return [self.of(hook).save(workspace) for hook in self.saes]

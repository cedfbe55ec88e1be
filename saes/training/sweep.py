"""Compare SAEs over k or λ, width and seed: all trained on the same batches, measured on the same held-out data."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from attlas.data.dataset import Dataset
from attlas.data.progress import Track, terminal_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Ref
from attlas.errors import ConfigError
from attlas.interp import AnyModel, as_hooked, load_model
from attlas.saes.activations import vector_hooks
from attlas.saes.architectures import architecture
from attlas.saes.base import SAE
from attlas.saes.evaluation.measure import EvalConfig, evaluate
from attlas.saes.identity import identity
from attlas.saes.inputs import HELD_OUT, held_out, load_inputs, train_and_held_out
from attlas.saes.plots import pareto_figure
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.history import SWEEP_TRAINING, History
from attlas.saes.training.loop import train_loop
from attlas.saes.training.over_seeds import SETTING_COLUMNS, SWEEP_SEEDS, over_seeds
from attlas.saes.training.store import adopt_store, stored_inputs
from attlas.saes.training.train import SAMPLE_TOKENS, make_buffer, start_trainer

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from attlas.interp import HookedModel

PARETO = TableSchema(
    "pareto",
    "one SAE of a sweep, measured on held-out data",
    (
        column("sae", pa.string(), "", "name, and folder under saes/ in the run"),
        *SETTING_COLUMNS,
        column("seed", pa.int32(), "", "seed of its initial weights"),
        column("l0", pa.float64(), "features", "active features a token"),
        column("explained_variance", pa.float64(), "fraction", "1 − Σ‖x−x̂‖² / Σ‖x−x̄‖²"),
        column("ce_recovered", pa.float64(), "fraction", "against zero ablation; null where the model has no loss"),
        column("dead_fraction", pa.float64(), "fraction", "features active on none of the held-out tokens, of d_sae"),
        column("on_front", pa.bool_(), "", "no other SAE of the hook has lower L0 and higher explained variance"),
    ),
)


@dataclass(frozen=True)
class SweepConfig:
    """A grid around a training configuration; an empty axis keeps the configuration's value.

    Attributes:
        train: what all have in common.
        k, sparsity, width, seed: values of each axis. Seeds draw initial weights; data and order are shared.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    k: tuple[int, ...] = ()
    sparsity: tuple[float, ...] = ()
    width: tuple[int, ...] = ()
    seed: tuple[int, ...] = ()

    def variants(self) -> list[tuple[str, TrainConfig]]:
        """(name, configuration) of every point of the grid.

        Raises:
            ConfigError: an axis has no effect on the architecture.
        """
        topk = architecture(self.train.arch).chooses_k
        if self.sparsity and topk:
            raise ConfigError(f"λ has no effect on '{self.train.arch}'; sweep k instead")
        if self.k and not topk:
            raise ConfigError(f"k has no effect on '{self.train.arch}'; sweep the sparsity λ instead")
        axes = {"k": self.k, "sparsity": self.sparsity, "d_sae": self.width, "seed": self.seed}
        chosen = {name: values for name, values in axes.items() if values}
        found = []
        for point in itertools.product(*chosen.values()):
            changes: dict[str, Any] = dict(zip(chosen, point, strict=True))
            name = "-".join(f"{key}{value:g}" for key, value in changes.items()) or "base"
            found.append((name, dataclasses.replace(self.train, **changes)))
        return found


@dataclass(frozen=True)
class SweepResult(Result):
    """Trained SAEs of a grid and what they measured.

    Attributes:
        saes: name → SAE.
        rows: of the table "pareto".
        config: of the sweep.
        model_ref, data_ref: model and training data.
        history: curves of all.
    """

    kind: ClassVar[str] = "sae_sweep"

    saes: dict[str, SAE]
    rows: list[dict[str, Any]]
    config: SweepConfig
    model_ref: Ref
    data_ref: Ref
    history: History

    def table(self) -> pa.Table:
        """Schema `PARETO`."""
        return PARETO.table(self.rows)

    def plot(self) -> go.Figure:
        """Explained variance against L0, the front joined."""
        return pareto_figure(self.rows)

    def summary(self) -> dict[str, Any]:
        """Sizes of the grid and the points on the front."""
        return {"n_saes": len(self.rows), "front": [row["sae"] for row in self.rows if row["on_front"]]}

    def tables(self) -> dict[str, pa.Table]:
        """All points, the training curves of every SAE, and means over seeds where there are several."""
        found = {PARETO.name: self.table(), SWEEP_TRAINING.name: SWEEP_TRAINING.table(self.history.rows)}
        seeds = over_seeds(self.rows)
        return found | ({SWEEP_SEEDS.name: SWEEP_SEEDS.table(seeds)} if seeds else {})

    def _origin(self) -> tuple[Ref | None, Ref | None]:
        return self.model_ref, self.data_ref

    @property
    def _seed(self) -> int | None:
        return self.config.train.seed

    def _files(self) -> dict[str, Callable[[Path], Any]]:
        """Every SAE, under `saes/`."""
        return {f"saes/{name}": sae.save for name, sae in self.saes.items()}


def sweep_saes(
    config: SweepConfig,
    *,
    model: AnyModel | None = None,
    data: Dataset | None = None,
    val: Dataset | None = None,
    evaluation: EvalConfig | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    track: Track | None = None,
    progress: bool = True,
) -> SweepResult:
    """Train every point of the grid in one pass over the data, then measure each on held-out data.

    Args:
        config: the grid.
        model, data: as in `train_sae`.
        val: held-out data; None takes 32,768 tokens (or 500 images) that training does not see: of embedded:val, or of
            the configuration's own source (see `train_and_held_out`).
        evaluation: how to measure; None measures without controls and intervals.
        folder, resume: live curve and checkpoint, as in `train_sae`.
        track, progress: as in `train_sae`.

    Example:
        >>> from attlas.saes import SweepConfig, TrainConfig, sweep_saes
        >>> small = TrainConfig(hooks=(hook,), d_sae=32, n_tokens=256, batch_size=64, buffer_tokens=256)
        >>> result = sweep_saes(SweepConfig(small, k=(2, 4)), model=model, data=text, val=text)
        >>> list(result.saes)
        ['blocks.2.attn.hook_z-k2', 'blocks.2.attn.hook_z-k4']
        >>> result.table().num_rows
        2
    """
    config = dataclasses.replace(config, train=adopt_store(config.train))
    track = track or terminal_track(progress)
    train = config.train
    variants = config.variants()
    if model is None:
        model = load_model(train.model, device=train.device, dtype=train.dtype)
    model = as_hooked(model)
    hooks = vector_hooks(model, train.hooks)
    if data is None:
        data = stored_inputs(train)
    if data is None and val is None:
        data, val = train_and_held_out(model, train)
    if data is None:
        data = load_inputs(model, train)
    with contextlib.closing(make_buffer(model, data, hooks, train, track)) as buffer:
        sample = buffer.peek(SAMPLE_TOKENS)
        variant_of: dict[str, TrainConfig] = {}
        trainers = []
        for hook, (name, variant) in itertools.product(hooks, variants):
            full = f"{hook}-{name}"
            variant_of[full] = variant
            trainers.append(start_trainer(full, hook, model, sample[hook], variant, data.ref))

        kept = Path(folder) if folder is not None else None
        same = identity(model, data.ref) if kept is not None else None
        history = train_loop(trainers, buffer, train, folder=kept, resume=resume, identity=same, track=track)
    saes = {trainer.name: trainer.finish() for trainer in trainers}
    if val is None:
        val = held_out(model, n_tokens=HELD_OUT[0], n_images=HELD_OUT[1], seq_len=train.seq_len, seed=train.seed)
    evaluation = evaluation or EvalConfig(controls=(), n_bootstrap=0)
    rows = [
        _measure(name, sae, variant_of[name], model, val, evaluation)
        for name, sae in track(list(saes.items()), "measuring")
    ]
    return SweepResult(saes, mark_front(rows), config, model.ref, data.ref, history)


def _measure(
    name: str, sae: SAE, variant: TrainConfig, model: HookedModel, val: Dataset, evaluation: EvalConfig
) -> dict[str, Any]:
    summary = evaluate(sae, model, val, evaluation).summary()
    return {
        "sae": name,
        "hook": sae.cfg.hook_name,
        "arch": sae.cfg.arch,
        "k": sae.cfg.k,
        "sparsity": sae.cfg.sparsity,
        "d_sae": sae.cfg.d_sae,
        "seed": variant.seed,
        "l0": summary["l0"],
        "explained_variance": summary["explained_variance"],
        "ce_recovered": summary.get("ce_recovered"),
        "dead_fraction": summary["dead_fraction"],
    }


def mark_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `on_front` set: no other of the same hook is at least as good in both, and better in one."""

    def beaten(row: dict[str, Any]) -> bool:
        mine = (-row["l0"], row["explained_variance"])
        rivals = [(-r["l0"], r["explained_variance"]) for r in rows if r["hook"] == row["hook"]]
        return any(r[0] >= mine[0] and r[1] >= mine[1] and r != mine for r in rivals)

    return [{**row, "on_front": not beaten(row)} for row in rows]

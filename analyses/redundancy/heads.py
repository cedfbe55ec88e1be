"""What every head is worth: exact ablations that share their prefix, and first-order estimates from one gradient.

Ablations of a head's z: zero, its mean over the data (in all, or at each position), what it is for another input (see
head_fills), and identity (the head attends to its own position alone: A' = (1 − u)·A + u·I with u = 1, so z' = v; SoftPAG
takes u between). First order (Molchanov et al. 2017, arXiv 1611.06440;
Michel et al. 2019, arXiv 1905.10650): Δ̂ = −Σ z·∂loss/∂z, and |Σ z·∂loss/∂z| a sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import HEAD, LAYER, N_SEQUENCES, interval
from attlas.analyses.common.fills import HeadFills, fill_head
from attlas.analyses.common.losses import sequence_loss
from attlas.data.dataset import Dataset
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean, spearman
from attlas.errors import ConfigError, require_counts
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.labels import loss_labels
from attlas.interp.prefix import Prefix, attend_once

EXACT = ("zero", "mean", "identity")
FURTHER = ("mean_per_position", "resample")  # exact too; measured when asked for
TAYLOR = ("taylor", "taylor_abs")

HEAD_EFFECTS = TableSchema(
    "head_effects",
    "one head, one ablation",
    (
        LAYER,
        HEAD,
        column(
            "ablation",
            pa.string(),
            "",
            "zero, mean, mean_per_position, resample, identity (exact); taylor, taylor_abs (estimates for zero)",
        ),
        column("delta", pa.float64(), "nats", "cross-entropy with the head ablated less that without"),
        *interval("nats", "sequences or images"),
        N_SEQUENCES,
    ),
)
SCHEMAS = (HEAD_EFFECTS,)


@dataclass(frozen=True)
class HeadEffectsConfig:
    """Which effects to measure.

    Attributes:
        ablations: of zero, mean (over sequences and positions), mean_per_position (over sequences; of packed text a
            position says little, of images it is a patch or CLS), resample (another sequence's), identity, taylor,
            taylor_abs.
        heads_per_forward: heads of a layer that share one forward pass (memory grows with it).
        u: how far identity goes: A' = (1 − u)·A + u·I.
        batch_size: sequences or images at a time.
        resample_draws: other sequences that stand in for each, for resample; the effect is their mean.
        seed: of the bootstrap, and of those draws.
        n_bootstrap: resamples of each interval.
    """

    ablations: tuple[str, ...] = (*EXACT, *TAYLOR)
    heads_per_forward: int = 6
    u: float = 1.0
    batch_size: int = 8
    resample_draws: int = 4
    seed: int = 0
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        known = (*EXACT, *FURTHER, *TAYLOR)
        for name in self.ablations:
            if name not in known:
                raise ConfigError(f"ablation '{name}' is unknown; choose {', '.join(known)}")
        require_counts(self, "heads_per_forward", "batch_size", "resample_draws")
        if not 0 <= self.u <= 1:
            raise ConfigError(f"u {self.u} must lie between 0 and 1")


@dataclass(frozen=True)
class HeadEffectsResult(Result):
    """Effects a sequence.

    Attributes:
        per_sequence: ablation → float64 [n_sequences, layer, head], nats.
    """

    kind: ClassVar[str] = "head_effects"

    per_sequence: dict[str, np.ndarray]
    config: HeadEffectsConfig

    def mean(self, ablation: str) -> np.ndarray:
        """Δ loss [layer, head]."""
        found: np.ndarray = self.per_sequence[ablation].mean(0)
        return found

    def rank_correlation(self, estimate: str, exact: str = "zero") -> float:
        """Spearman's ρ over heads between an estimate and an exact effect."""
        return float(spearman(self.mean(estimate).ravel(), self.mean(exact).ravel()))

    def table(self) -> pa.Table:
        """Table head_effects."""
        rows = []
        for ablation, values in self.per_sequence.items():
            mean, low, high = bootstrap_mean(values, seed=self.config.seed, n_samples=self.config.n_bootstrap)
            for (layer, head), value in np.ndenumerate(mean):
                row = {"layer": layer, "head": head, "ablation": ablation, "delta": float(value)}
                interval = {"low": float(low[layer, head]), "high": float(high[layer, head])}
                rows.append({**row, **interval, "n_sequences": len(values)})
        return HEAD_EFFECTS.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"head_effects": self.table()}

    def plot(self, ablation: str | None = None) -> Any:
        """Heatmap layers × heads."""
        import plotly.graph_objects as go

        name = ablation or next(iter(self.per_sequence))
        figure = new_figure(go.Heatmap(z=self.mean(name), zmid=0, colorbar={"title": "Δ nats"}))
        figure.update_layout(xaxis_title="head", yaxis_title="layer", title=f"Δ loss of each head, {name} ablation")
        figure.update_yaxes(autorange="reversed", dtick=1)
        return figure

    def summary(self) -> dict[str, Any]:
        """The head that costs most and least, and how well first order ranks heads."""
        name, values = next(iter(self.per_sequence.items()))
        mean = values.mean(0)
        worst, least = (np.unravel_index(i, mean.shape) for i in (mean.argmax(), mean.argmin()))
        found: dict[str, Any] = {
            "ablation": name,
            "costliest_head": f"{worst[0]}.{worst[1]}",
            "costliest_delta": float(mean.max()),
            "cheapest_head": f"{least[0]}.{least[1]}",
            "cheapest_delta": float(mean.min()),
        }
        for estimate in TAYLOR:
            if estimate in self.per_sequence and "zero" in self.per_sequence:
                found[f"rank_correlation_{estimate}"] = self.rank_correlation(estimate)
        return found


def head_effects(
    model: AnyModel,
    data: Dataset,
    config: HeadEffectsConfig | None = None,
    track: Track = no_track,
) -> HeadEffectsResult:
    """Δ loss of every head, sequence by sequence (text: mean next-token loss; images: loss of the true class).

    Raises:
        ConfigError: a vision model without classifier, or images without labels of its classes.

    Example:
        >>> from attlas.analyses.redundancy import HeadEffectsConfig, head_effects
        >>> result = head_effects(model, text, HeadEffectsConfig(ablations=("zero",), n_bootstrap=10))
        >>> len(result.table())  # heads × ablations
        24
    """
    model = as_hooked(model)
    config = config or HeadEffectsConfig()
    labels = loss_labels(model, data)
    fills = HeadFills(
        model,
        data,
        config.ablations,
        batch_size=config.batch_size,
        n_draws=config.resample_draws,
        seed=config.seed,
    )
    found: dict[str, list[np.ndarray]] = {name: [] for name in config.ablations}
    for batch in track(data.minibatches(config.batch_size, labels), "head effects"):
        assert batch.targets is not None
        target = batch.targets.to(model.device)
        fills.turn_to(batch.rows)
        for name, values in _exact(model, batch.inputs, target, config, fills).items():
            found[name].append(values)
        if set(config.ablations) & set(TAYLOR):
            product = _first_order(model, batch.inputs, target)
            for name, values in (("taylor", -product), ("taylor_abs", np.abs(product))):
                if name in found:
                    found[name].append(values)
    return HeadEffectsResult({name: np.concatenate(parts) for name, parts in found.items()}, config)


@torch.no_grad()
def _exact(
    model: HookedModel, batch: Tensor, target: Tensor, config: HeadEffectsConfig, fills: HeadFills
) -> dict[str, np.ndarray]:
    """ablation → Δ loss [B, layer, head]; each layer's ablations start from the residual stream in front of it."""
    names = [name for name in config.ablations if name in (*EXACT, *FURTHER)]
    prefix = Prefix(model, batch) if names else None
    found = {name: np.zeros((len(batch), model.cfg.n_layers, model.cfg.n_heads)) for name in names}
    if prefix is None:
        return found
    clean = sequence_loss(model, target, prefix.output)
    for layer in range(model.cfg.n_layers):
        for first in range(0, model.cfg.n_heads, config.heads_per_forward):
            heads = list(range(first, min(first + config.heads_per_forward, model.cfg.n_heads)))
            residual = prefix.residual[layer].repeat(len(heads), 1, 1)
            for name in names:
                n_draws = fills.n_draws(name)
                for draw in range(n_draws):
                    with _ablated(model, layer, heads, name, config.u, fills, draw):
                        losses = prefix.run_from(layer, residual, lambda logits: sequence_loss(model, target, logits))
                    found[name][:, layer, heads] += (losses - clean).double().cpu().numpy().T / n_draws
    return found


@contextlib.contextmanager
def _ablated(
    model: HookedModel, layer: int, heads: list[int], ablation: str, u: float, fills: HeadFills, draw: int
) -> Iterator[None]:
    """Within, heads[i] is ablated in the i-th copy of the batch."""
    values: list[Tensor] = []
    group = model.cfg.n_heads // model.cfg.n_kv_heads

    def keep(v: Tensor, _name: str) -> None:
        values[:] = [v]

    def ablate(z: Tensor) -> None:
        for copy, head in zip(z.chunk(len(heads)), heads, strict=True):
            if ablation == "identity":
                copy[:, :, head] = (1 - u) * copy[:, :, head] + u * values[0][:, :, head // group]
            else:
                fill_head(copy, head, fills.of(ablation, layer, draw))

    reads: dict[str, Any] = {f"blocks.{layer}.attn.hook_v": keep} if ablation == "identity" else {}
    with model.hooks(reads), attend_once(model, layer, len(heads), ablate):
        yield


@torch.enable_grad()
def _first_order(model: HookedModel, batch: Tensor, target: Tensor) -> np.ndarray:
    """Σ z·∂loss/∂z [B, layer, head], the loss of each sequence by its own z."""
    probes: list[Tensor] = []
    outputs: list[Tensor] = []

    def probe(z: Tensor, _name: str) -> Tensor:
        probes.append(torch.zeros_like(z, requires_grad=True))
        outputs.append(z.detach())
        return z + probes[-1]

    with model.hooks({"blocks.*.attn.hook_z": probe}):
        loss = sequence_loss(model, target, model(batch)).sum()
    gradients = torch.autograd.grad(loss, probes)
    products = [(z.double() * g.double()).sum((1, 3)) for z, g in zip(outputs, gradients, strict=True)]
    return torch.stack(products, dim=1).cpu().numpy()

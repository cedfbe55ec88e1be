"""Does a circuit do the task alone, and is the task lost without it? Ablation of all that is outside, and of all inside.

Faithfulness is (m(circuit) − m(nothing)) / (m(model) − m(nothing)), where everything outside the circuit is ablated
(Wang et al. 2022, arXiv 2211.00593; Marks et al. 2024, arXiv 2403.19647); completeness asks the same of the model
without the circuit: what is left should be near 0. Units are heads, or an autoencoder's features and error in the layers
that have one; "nothing" ablates all of them. MLPs, embeddings and biases stand in every run *(ours)*: a trace does not
look into them. Two controls: circuits of as many units a layer drawn anywhere ("random"), and as many drawn at the
circuit's own layers and positions ("same places"), which is the harder one: most positions do not matter to a task.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.circuits.graph import CircuitGraph
from attlas.analyses.common.columns import N_PROMPTS, interval
from attlas.analyses.tasks.metrics import Metric, unit_of
from attlas.analyses.tasks.task import Task
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_ratio
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.names import layer_index
from attlas.saes.base import SAE
from attlas.saes.decompose import SAEs, check_saes, decompose

MODES = ("corrupted", "mean", "zero")

FAITHFULNESS = TableSchema(
    "faithfulness",
    "one set of units kept",
    (
        column("kept", pa.string(), "", "model (all), nothing, circuit, without circuit, random 0 …, same places 0 …"),
        column("n_units", pa.float64(), "", "units kept, mean over prompts"),
        column("metric", pa.float64(), "metric", "mean over prompts"),
        column("recovered", pa.float64(), "fraction", "(metric − nothing) / (model − nothing); null where they tie"),
        *interval("fraction", "prompts"),
        N_PROMPTS,
    ),
)
SCHEMAS = (FAITHFULNESS,)

Keep = dict[int, Tensor]  # layer → bool [B, T, units of the layer]


@dataclass(frozen=True)
class FaithfulnessConfig:
    """How to ablate.

    Attributes:
        mode: what stands in for an ablated unit: its value in the "corrupted" prompt, its "mean" over the corrupted
            prompts at that position, or "zero".
        by_position: keep a unit only where the graph has it; False keeps it at every position (for prompts whose
            positions differ).
        n_random: random circuits of the same size, of each of both kinds.
        seed: of these and of the bootstrap.
    """

    mode: str = "corrupted"
    by_position: bool = True
    n_random: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode '{self.mode}' is unknown; use one of {', '.join(MODES)}")
        if self.n_random < 0:
            raise ConfigError(f"n_random {self.n_random} must be 0 or more")


@dataclass(frozen=True)
class FaithfulnessResult(Result):
    """The metric with each set of units kept.

    Attributes:
        metrics: name of the set → float64 [n_prompts].
        n_units: name of the set → mean number of units kept.
        unit: of the metric.
    """

    kind: ClassVar[str] = "faithfulness"

    metrics: dict[str, np.ndarray]
    n_units: dict[str, float]
    unit: str
    config: FaithfulnessConfig

    def recovered(self, name: str) -> tuple[float, float, float]:
        """(share of the metric recovered, low, high); NaN where model and nothing tie."""
        return recovered(self.metrics[name], self.metrics["model"], self.metrics["nothing"], self.config.seed)

    @property
    def random(self) -> list[float]:
        """What each random circuit recovers."""
        return self._control("random")

    @property
    def same_places(self) -> list[float]:
        """What each random circuit at the layers and positions of the real one recovers."""
        return self._control("same places")

    def _control(self, kind: str) -> list[float]:
        return [self.recovered(name)[0] for name in self.metrics if name.startswith(kind)]

    def table(self) -> pa.Table:
        """Table faithfulness."""
        rows = []
        for name, values in self.metrics.items():
            share, low, high = (None if np.isnan(v) else v for v in self.recovered(name))
            rows.append(
                {
                    "kept": name,
                    "n_units": self.n_units[name],
                    "metric": float(values.mean()),
                    "recovered": share,
                    "low": low,
                    "high": high,
                    "n_prompts": len(values),
                }
            )
        return FAITHFULNESS.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"faithfulness": self.table()}

    def plot(self) -> Any:
        """Share recovered by each set, with its interval."""
        import plotly.graph_objects as go

        rows = [r for r in self.table().to_pylist() if r["recovered"] is not None]
        y = np.array([r["recovered"] for r in rows])
        error = {
            "type": "data",
            "array": np.array([r["high"] for r in rows]) - y,
            "arrayminus": y - np.array([r["low"] for r in rows]),
        }
        figure = new_figure(go.Bar(x=[r["kept"] for r in rows], y=y, error_y=error))
        figure.update_layout(title="Share of the metric recovered with only these units", yaxis_title="share")
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers."""
        faithful, complete = self.recovered("circuit"), self.recovered("without circuit")
        return {
            "faithfulness": faithful[0],
            "faithfulness_low": faithful[1],
            "faithfulness_high": faithful[2],
            "left_without_circuit": complete[0],
            "left_low": complete[1],
            "left_high": complete[2],
            **_spread("random", self.random),
            **_spread("same_places", self.same_places),
            "n_random": len(self.random),
            "n_units": self.n_units["circuit"],
            "n_units_of": self.n_units["model"],
            "model": float(self.metrics["model"].mean()),
            "nothing": float(self.metrics["nothing"].mean()),
            "unit": self.unit,
            "n_prompts": len(self.metrics["model"]),
        }


def _spread(kind: str, shares: list[float]) -> dict[str, float | None]:
    """Median, mean and range of what random circuits recover; None without any."""
    if not shares:
        return {f"{kind}_{name}": None for name in ("median", "mean", "min", "max")}
    middle = {f"{kind}_median": float(np.median(shares)), f"{kind}_mean": float(np.mean(shares))}
    return {**middle, f"{kind}_min": min(shares), f"{kind}_max": max(shares)}


def recovered(
    values: np.ndarray, full: np.ndarray, nothing: np.ndarray, seed: int, n_samples: int = 1000
) -> tuple[float, float, float]:
    """(mean(values) − mean(nothing)) / (mean(full) − mean(nothing)) with a 95 % bootstrap interval over prompts."""
    gap = float(full.mean() - nothing.mean())
    if abs(gap) < 1e-9:
        return float("nan"), float("nan"), float("nan")
    share, low, high = bootstrap_ratio(values - nothing, full - nothing, seed=seed, n_samples=n_samples)
    return float(share), float(low), float(high)


@torch.no_grad()
def faithfulness(
    model: AnyModel,
    task: Task,
    graphs: CircuitGraph | Sequence[CircuitGraph],
    config: FaithfulnessConfig | None = None,
    *,
    saes: SAEs | None = None,
    metric: Metric | None = None,
    track: Track = no_track,
) -> FaithfulnessResult:
    """Ablate what is outside a circuit, what is inside, and what is outside of random ones.

    Args:
        task: prompts, with corrupted ones of equal length.
        graphs: one for all prompts, or one a prompt.
        saes: as in the trace.
        metric: default the task's own.

    Raises:
        ConfigError: the graphs are neither one nor one a prompt, or have autoencoders on other layers.

    Warns: a layer's autoencoder is not the one of the trace; says both.

    Example:
        >>> from attlas.analyses.circuits import FaithfulnessConfig, LogitTarget, TraceConfig, faithfulness, trace
        >>> target = LogitTarget((int(task.right[0, 0]),))
        >>> graph = trace(model, task.tokens[0], target, TraceConfig(top_n=3))
        >>> result = faithfulness(model, task, graph, FaithfulnessConfig(n_random=1))
        >>> sorted(result.tables())
        ['faithfulness']
    """
    model = as_hooked(model)
    config = config or FaithfulnessConfig()
    found = [graphs] * len(task) if isinstance(graphs, CircuitGraph) else list(graphs)
    if len(found) != len(task):
        raise ConfigError(f"there are {len(found)} graphs for {len(task)} prompts; give one, or one a prompt")
    ablation = _Ablation(model, task, config, check_saes(model, saes or {}))
    for graph in found:
        if set(graph.saes) != set(ablation.saes):
            raise ConfigError(
                f"the graph has autoencoders on layers {sorted(graph.saes)}, given are {sorted(ablation.saes)}; "
                "give those it was traced with"
            )
    _same_saes(found, ablation.saes)
    circuit = ablation.units(found)
    everything = {layer: torch.ones_like(keep) for layer, keep in circuit.items()}
    sets: dict[str, Keep] = {
        "model": everything,
        "nothing": {layer: ~keep for layer, keep in everything.items()},
        "circuit": circuit,
        "without circuit": {layer: ~keep for layer, keep in circuit.items()},
    }
    generator = torch.Generator().manual_seed(config.seed)
    for i in range(config.n_random):
        sets[f"random {i}"] = ablation.shuffled(circuit, generator)
    for i in range(config.n_random):
        sets[f"same places {i}"] = ablation.shuffled(circuit, generator, in_place=True)
    metric = metric or task.metric_fn()
    metrics, n_units = {}, {}
    for name, keep in track(list(sets.items()), "ablating"):
        metrics[name] = ablation.run(keep, metric)
        n_units[name] = ablation.count(keep)
    return FaithfulnessResult(metrics, n_units, unit_of(metric), config)


def _same_saes(graphs: Sequence[CircuitGraph], saes: dict[int, tuple[str, SAE]]) -> None:
    """Warn when features of the graphs are those of other autoencoders than the given ones."""
    for layer, (_, sae) in saes.items():
        traced = {graph.saes[layer] for graph in graphs} - {sae.hash, ""}
        if traced:
            warnings.warn(
                f"layer {layer} was traced with autoencoder {', '.join(sorted(traced))} and is ablated with {sae.hash}: "
                "their features are not the same",
                stacklevel=3,
            )


class _Ablation:
    """Runs of the model with some units replaced."""

    def __init__(self, model: HookedModel, task: Task, config: FaithfulnessConfig, saes: SAEs) -> None:
        self.model, self.task, self.config = model, task, config
        self.saes = {layer_index(hook): (hook, sae) for hook, sae in saes.items()}
        self.hooks = {
            layer: self.saes[layer][0] if layer in self.saes else f"blocks.{layer}.attn.hook_z"
            for layer in range(model.cfg.n_layers)
        }
        other = model.run_with_cache(task.corrupted, list(self.hooks.values()))[1]
        own = model.run_with_cache(task.tokens, list(self.hooks.values()))[1]
        self.stand_in: dict[int, Tensor] = {}
        self.stand_in_error: dict[int, Tensor] = {}
        self.firing: dict[int, Tensor] = {}
        for layer, hook in self.hooks.items():
            values = self._reference(self._split(layer, other[hook]))
            self.stand_in[layer] = values
            if layer in self.saes:
                self.stand_in_error[layer] = self._reference(decompose(self.saes[layer][1], other[hook]).error)
            # A feature that is active in neither prompt changes nothing: it does not count as a unit.
            active = (self._split(layer, own[hook]) != 0) | (values != 0)
            self.firing[layer] = active.any(-1) if layer not in self.saes else active[..., 0]

    def _reference(self, x: Tensor) -> Tensor:
        """What stands in for x of the corrupted prompts."""
        if self.config.mode == "mean":
            return x.mean(0, keepdim=True).expand_as(x)
        return torch.zeros_like(x) if self.config.mode == "zero" else x

    def _split(self, layer: int, x: Tensor) -> Tensor:
        """Units of a layer, [B, T, units, width]: heads' z, or features' coefficients (width 1)."""
        if layer not in self.saes:
            return x
        return decompose(self.saes[layer][1], x).coefficients[..., None]

    def units(self, graphs: Sequence[CircuitGraph]) -> Keep:
        """The circuit's units. An autoencoder's error is the last unit of its layer."""
        n, length = self.task.tokens.shape
        keep = {}
        for layer in self.hooks:
            width = self.saes[layer][1].cfg.d_sae + 1 if layer in self.saes else self.model.cfg.n_heads
            keep[layer] = torch.zeros(n, length, width, dtype=torch.bool)
        for row, graph in enumerate(graphs):
            for node in graph.nodes:
                if node.kind not in ("feature", "head", "error"):
                    continue
                unit = {"feature": node.feature, "head": node.head, "error": -1}[node.kind]
                where = node.position if self.config.by_position else slice(None)
                keep[node.layer][row, where, unit] = True
        return keep

    def candidates(self, layer: int) -> Tensor:
        """Units that could make a difference, bool [B, T, units]."""
        firing = self.firing[layer].cpu()
        if layer not in self.saes:
            return firing
        return torch.cat([firing, torch.ones_like(firing[..., :1])], dim=-1)

    def shuffled(self, circuit: Keep, generator: torch.Generator, in_place: bool = False) -> Keep:
        """As many units in each layer and prompt (`in_place`: and position), drawn from those that could matter."""
        found = {}
        for layer, keep in circuit.items():
            able = self.candidates(layer)
            if not self.config.by_position:
                able, keep = able.any(1, keepdim=True), keep.any(1, keepdim=True)
            first = 2 if in_place else 1
            n = (keep & able).flatten(first).sum(-1, keepdim=True)
            score = torch.rand(able.shape, generator=generator).masked_fill(~able, -1.0).flatten(first)
            rank = score.argsort(dim=-1, descending=True).argsort(dim=-1)
            found[layer] = (rank < n).view(able.shape).expand_as(circuit[layer])
        return found

    def count(self, keep: Keep) -> float:
        """Mean number of units kept that could make a difference."""
        total = 0.0
        for layer, kept in keep.items():
            able = self.candidates(layer)
            both = (kept & able).any(1) if not self.config.by_position else kept & able
            total += float(both.flatten(1).sum(1).double().mean())
        return total

    def run(self, keep: Keep, metric: Metric) -> np.ndarray:
        """The metric of each prompt with only `keep` kept, float64 [B]."""
        by_hook = {hook: layer for layer, hook in self.hooks.items()}

        def fn(x: Tensor, name: str) -> Tensor | None:
            layer = by_hook[name]
            kept = keep[layer].to(x.device)
            if bool(kept.all()):
                return None
            if layer not in self.saes:
                return torch.where(kept[..., None], x, self.stand_in[layer])
            sae = self.saes[layer][1]
            parts, other = decompose(sae, x), self.stand_in[layer][..., 0]
            coefficients = torch.where(kept[..., :-1], parts.coefficients, other)
            error = torch.where(kept[..., -1:], parts.error, self.stand_in_error[layer])
            return (coefficients @ sae.W_dec.to(x.dtype) + parts.bias + error).reshape(x.shape)

        with self.model.hooks(dict.fromkeys(by_hook, fn)):
            return metric(self.model(self.task.tokens)).double().cpu().numpy()

"""Patching: what a metric does when one place of the forward pass is changed, place by place.

Zero, mean and resample ablation, and activation patching from other prompts (Meng et al. 2022, arXiv 2202.05262; Wang et
al. 2022, arXiv 2211.00593; Zhang & Nanda 2023, arXiv 2309.16042), each beside its estimate from gradients. Patching
`hook_attn_out` by layer between two prompts localises the attention layers that carry their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.circuits.attribution_patching import estimate, path_gradients, rank_features
from attlas.analyses.circuits.config import PatchingConfig
from attlas.analyses.circuits.sites import Edit, Site, check_site, edited, grid, replacement
from attlas.analyses.common.columns import N_PROMPTS, interval
from attlas.analyses.tasks.metrics import Metric, unit_of
from attlas.analyses.tasks.task import Task
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean, pearson, spearman
from attlas.errors import ConfigError, PromptError
from attlas.interp import AnyModel, as_hooked
from attlas.saes.decompose import SAEs, check_saes

PATCHING = TableSchema(
    "patching",
    "one place that was changed",
    (
        column("hook", pa.string(), "", "hook name"),
        column("layer", pa.int16(), "", "layer index; −1 for embeddings"),
        column("head", pa.int16(), "", "head index; −1 for all"),
        column("position", pa.int32(), "tokens", "token position; −1 for all, or for a role that differs by prompt"),
        column("feature", pa.int32(), "", "SAE feature; −1 for none, −2 for the SAE's error"),
        column("effect", pa.float64(), "metric", "mean over prompts of metric(changed run) − metric(base run)"),
        *interval("metric", "prompts"),
        column(
            "normalized", pa.float64(), "fraction", "effect / (metric of the source prompts − base); null if they tie"
        ),
        column("estimate", pa.float64(), "metric", "the effect estimated from gradients"),
        N_PROMPTS,
    ),
)
SCHEMAS = (PATCHING,)


@dataclass(frozen=True)
class PatchingResult(Result):
    """Effects of all sites.

    Attributes:
        sites: n of them.
        effects: float64 [n, B], metric of the changed run − that of the base run.
        estimates: float64 [n, B], the same from gradients.
        base, source: float64 [B], the metric of the base and of the source prompts.
        unit: of the metric.
        tokens: text of the first base prompt's tokens.
    """

    kind: ClassVar[str] = "patching"

    sites: tuple[Site, ...]
    effects: np.ndarray
    estimates: np.ndarray
    base: np.ndarray
    source: np.ndarray
    unit: str
    tokens: tuple[str, ...]
    config: PatchingConfig

    @property
    def correlation(self) -> tuple[float, float]:
        """Pearson's and Spearman's correlation of exact and estimated mean effects over sites; NaN below 3 sites."""
        if len(self.effects) < 3:
            return float("nan"), float("nan")
        exact, estimated = self.effects.mean(1), self.estimates.mean(1)
        return float(pearson(exact, estimated)), float(spearman(exact, estimated))

    def normalized(self) -> np.ndarray:
        """Mean effect as a share of the metric's difference between source and base, [n]; NaN where they tie."""
        gap = float(self.source.mean() - self.base.mean())
        return self.effects.mean(1) / gap if abs(gap) > 1e-9 else np.full(len(self.sites), np.nan)

    def table(self) -> pa.Table:
        """Table patching."""
        mean, low, high = bootstrap_mean(self.effects.T, seed=self.config.seed)
        share = self.normalized()
        rows = []
        for i, site in enumerate(self.sites):
            rows.append(
                {
                    "hook": site.hook,
                    "layer": site.layer,
                    "head": -1 if site.head is None else site.head,
                    "position": site.position if isinstance(site.position, int) else -1,
                    "feature": -2 if site.error else -1 if site.feature is None else site.feature,
                    "effect": float(mean[i]),
                    "low": float(low[i]),
                    "high": float(high[i]),
                    "normalized": None if np.isnan(share[i]) else float(share[i]),
                    "estimate": float(self.estimates[i].mean()),
                    "n_prompts": self.effects.shape[1],
                }
            )
        return PATCHING.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {"patching": self.table()}

    def ranking(self, n: int = 10) -> list[tuple[str, float]]:
        """(site, mean effect), the largest by size first."""
        mean = self.effects.mean(1)
        return [(self.sites[i].label(), float(mean[i])) for i in np.argsort(-np.abs(mean))[:n]]

    def heatmap(self) -> np.ndarray:
        """Mean effects as [layer, position] or [layer, head]; [layer, 1] by layer, [1, n] by feature."""
        mean = self.effects.mean(1)
        if self.config.by == "feature":
            return mean[None]
        return mean.reshape(len({site.layer for site in self.sites}), -1)

    def plot(self) -> Any:
        """Heatmap of mean effects; blue lowers the metric, red raises it."""
        import plotly.graph_objects as go

        z = self.heatmap()
        x = None
        if self.config.by == "position":
            x = [f"{i} {token!r}" for i, token in enumerate(self.tokens)]
        elif self.config.by == "feature":
            x = [site.label() for site in self.sites]
        limit = float(np.abs(z).max()) or 1.0
        figure = new_figure(go.Heatmap(z=z, x=x, zmin=-limit, zmax=limit))
        title = (
            f"{self.config.mode} {self.config.hook_end} ({self.config.direction}): change of the metric, {self.unit}"
        )
        figure.update_layout(title=title, xaxis_title=self.config.by, yaxis_title="layer")
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers."""
        linear, ranks = self.correlation
        return {
            "base": float(self.base.mean()),
            "source": float(self.source.mean()),
            "unit": self.unit,
            "n_prompts": len(self.base),
            "n_sites": len(self.sites),
            "tokens": list(self.tokens),
            "strongest": self.ranking(5),
            "estimate_pearson": linear,
            "estimate_spearman": ranks,
        }


def patching(
    model: AnyModel,
    task: Task,
    config: PatchingConfig | None = None,
    *,
    saes: SAEs | None = None,
    metric: Metric | None = None,
    sites: Sequence[Site] | None = None,
    track: Track = no_track,
) -> PatchingResult:
    """Change one place after the other and measure.

    Args:
        model: a language model.
        task: clean and corrupted prompts of equal length (see make_task and task_from_prompts).
        config: what to change; its grid of sites is used unless `sites` are given.
        saes: hook → SAE, for features.
        metric: logits [B, T, V] → [B]; default the task's own.
        sites: places to change instead of the grid.

    Raises:
        PromptError: clean and corrupted prompts differ in length, or are the same, so that nothing could change.
        ConfigError: a site is not there.

    Example:
        >>> from attlas.analyses.circuits import PatchingConfig, patching
        >>> result = patching(model, task, PatchingConfig(by="head"))
        >>> result.effects.shape  # [places, prompts]
        (24, 2)
    """
    model = as_hooked(model)
    config = config or PatchingConfig()
    model.require_language_model()
    checked = check_saes(model, saes or {})
    if task.tokens.shape != task.corrupted.shape:
        raise PromptError(f"clean prompts are {list(task.tokens.shape)}, corrupted {list(task.corrupted.shape)}")
    if torch.equal(task.tokens, task.corrupted) and (
        config.mode == "patch" or (config.mode != "zero" and len(task) == 1)
    ):
        raise PromptError(
            f"clean and corrupted prompts are the same, so mode '{config.mode}' would change nothing; give a corrupted "
            "prompt of the same length, or use mode zero"
        )
    metric = metric or task.metric_fn()
    pair = (task.tokens, task.corrupted) if config.direction == "noise" else (task.corrupted, task.tokens)
    base_tokens, source_tokens = (t.to(model.device) for t in pair)
    if config.by == "feature" and not checked and sites is None:
        raise ConfigError("patching features needs SAEs; give saes={hook: sae}")
    n_positions = base_tokens.shape[1]
    chosen = list(sites) if sites is not None else grid(model, config.hook_end, config.by, n_positions, {})
    for site in chosen:
        check_site(model, site, checked, n_positions)
    hooks = list(checked) if config.by == "feature" and sites is None else list(dict.fromkeys(s.hook for s in chosen))
    with torch.no_grad():
        base_logits, base = model.run_with_cache(base_tokens, hooks)
        source_logits, source = model.run_with_cache(source_tokens, hooks)
        base_metric, source_metric = metric(base_logits), metric(source_logits)
    order = _derangement(len(task), config.seed)
    targets = {hook: replacement(source[hook], Site(hook), None, config.mode, order) for hook in hooks}
    slopes = path_gradients(model, base_tokens, metric, base, targets, config.ig_steps, track)
    if config.by == "feature" and sites is None:
        ranked = {
            hook: rank_features(slopes[hook], base[hook], source[hook], hook, checked, config.mode, config.n_features)
            for hook in hooks
        }
        chosen = grid(model, "", "feature", n_positions, ranked)
    effects, estimates = [], []
    for site in track(chosen, "patching"):
        value = replacement(source[site.hook], site, checked.get(site.hook), config.mode, order)
        with torch.no_grad(), edited(model, [Edit(site, value)], checked):
            effects.append((metric(model(base_tokens)) - base_metric).double().cpu().numpy())
        estimates.append(estimate(slopes[site.hook], base[site.hook], site, value, checked).double().cpu().numpy())
    return PatchingResult(
        sites=tuple(chosen),
        effects=np.stack(effects),
        estimates=np.stack(estimates),
        base=base_metric.double().cpu().numpy(),
        source=source_metric.double().cpu().numpy(),
        unit=unit_of(metric),
        tokens=tuple(model.to_str_tokens(base_tokens[0])) if model.tokenizer is not None else (),
        config=config,
    )


def _derangement(n: int, seed: int) -> Tensor:
    """A permutation without fixed points where there can be one: a shuffled cycle."""
    cycle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = torch.empty(n, dtype=torch.int64)
    order[cycle] = cycle.roll(1)
    return order

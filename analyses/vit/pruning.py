"""How many ViT heads can go together? Greedy pruning of groups, beside one-shot ranking and chance.

Heads are taken away one after another (z set to 0, as in a checkpoint without them, or to a mean); each step removes the
head whose absence, beside those gone already, changes the answers least. The search and the curves use different images
*(ours; METHODS: heads pruned one at a time say nothing of groups)*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import N_IMAGES, Head, interval
from attlas.analyses.common.fills import Fill, HeadFills, fill_head
from attlas.analyses.vit.config import VitPruningConfig
from attlas.analyses.vit.readout import Answer, Readout, make_readout, metric_mean
from attlas.data.figures import new_figure
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.splits import stratified_order
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.prefix import Suffix
from attlas.interp.require import require_vit

CURVE = TableSchema(
    "pruning_curve",
    "one order of removal, one number of heads gone, one metric",
    (
        column("order", pa.string(), "", "greedy, one-shot (least important alone first), or random-0, random-1 …"),
        column("n_pruned", pa.int16(), "heads", "heads gone"),
        column("layer", pa.int16(), "", "layer of the head removed last; null at 0 heads"),
        column("head", pa.int16(), "", "head removed last; null at 0 heads"),
        column("metric", pa.string(), "", "js, accuracy, knn_accuracy, probe_accuracy or cls_distance"),
        column("value", pa.float64(), "see metric", "mean over held-out images"),
        *interval("see metric"),
        N_IMAGES,
    ),
)
SCHEMAS = (CURVE,)


@dataclass(frozen=True)
class VitPruningResult(Result):
    """Orders of removal and what they cost.

    Attributes:
        orders: name → heads in order of removal.
        curves: name → metric → float32 [n_removed + 1, n_images], on held-out images.
        config: what was asked for.
        n_tried: suffix passes of the search, batches not counted.
    """

    kind: ClassVar[str] = "vit_pruning"

    orders: dict[str, list[Head]]
    curves: dict[str, dict[str, np.ndarray]]
    config: VitPruningConfig
    n_tried: int

    def table(self) -> pa.Table:
        """Table pruning_curve."""
        rows = []
        for name, curves in self.curves.items():
            for metric, values in curves.items():
                mean, low, high = metric_mean(
                    metric, values.T, seed=self.config.seed, n_samples=self.config.n_bootstrap
                )
                for step, value in enumerate(mean):
                    layer, head = self.orders[name][step - 1] if step else (None, None)
                    rows.append(
                        {
                            "order": name,
                            "n_pruned": step,
                            "layer": layer,
                            "head": head,
                            "metric": metric,
                            "value": float(value),
                            "low": float(low[step]),
                            "high": float(high[step]),
                            "n_images": values.shape[1],
                        }
                    )
        return CURVE.table(rows)

    def tables(self) -> dict[str, pa.Table]:
        return {CURVE.name: self.table()}

    @property
    def main_metric(self) -> str:
        """accuracy or knn_accuracy with labels, else js or cls_distance."""
        curves = next(iter(self.curves.values()))
        return next(m for m in ("accuracy", "knn_accuracy", "js", "cls_distance") if m in curves)

    def plot(self, metric: str | None = None) -> Any:
        """Curves of one metric against heads gone."""
        metric = metric or self.main_metric
        figure = new_figure()
        for name, curves in self.curves.items():
            figure.add_scatter(y=curves[metric].mean(1), name=name, mode="lines+markers")
        figure.update_layout(xaxis_title="heads pruned", yaxis_title=metric, title=f"{metric} as heads go together")
        return figure

    def summary(self) -> dict[str, Any]:
        """Heads that can go before the main metric falls by 0.01 (of accuracies), by order; mean over the curve."""
        metric = self.main_metric
        means = {name: curves[metric].mean(1) for name, curves in self.curves.items()}
        found: dict[str, Any] = {
            "metric": metric,
            "ablation": self.config.ablation,
            "greedy_mean": float(means["greedy"].mean()),
        }
        random = [m.mean() for name, m in means.items() if name.startswith("random")]
        if random:
            found["random_mean"] = float(np.mean(random))
        found["one_shot_mean"] = float(means["one-shot"].mean())
        if "accuracy" in metric:
            worse = np.flatnonzero(means["greedy"] < means["greedy"][0] - 0.01)
            found["heads_within_1_percent"] = int(worse[0]) - 1 if len(worse) else len(means["greedy"]) - 1
        return found


@torch.no_grad()
def vit_pruning(
    model: AnyModel, images: ImageDataset, config: VitPruningConfig | None = None, track: Track = no_track
) -> VitPruningResult:
    """Remove heads in groups: greedily, by one-shot ranking, and at random.

    Raises:
        UnsupportedModelError: the model is no vision model.
        ConfigError: no images are left beside the search's.

    Example:
        >>> from attlas.analyses.vit import VitPruningConfig, vit_pruning
        >>> small = VitPruningConfig(n_search=4, n_candidates=1, max_heads=1, n_random=1, n_bootstrap=10)
        >>> result = vit_pruning(vit_model, images, small)
        >>> sorted(result.tables())
        ['pruning_curve']
    """
    model = as_hooked(model)
    config = config or VitPruningConfig()
    require_vit(model, images)
    if len(images) <= config.n_search:
        raise ConfigError(f"n_search {config.n_search} leaves none of {len(images)} images to measure on; lower it")
    own = None if images.labels is None else images.labels.numpy()
    order = torch.from_numpy(stratified_order(len(images), own, config.seed))
    search, rest = order[: config.n_search].sort().values, order[config.n_search :].sort().values
    readout = make_readout(model, images, min(32, config.batch_size), config.seed)
    fills = HeadFills(
        model,
        images.select(search),
        (config.ablation,),
        batch_size=config.batch_size,
        n_draws=1,
        seed=config.seed,
    )
    gone = _Gone(model, fills, config.ablation)
    hunt = _Hunt(gone, images, search, readout, config.batch_size)
    heads = list(np.ndindex(model.cfg.n_layers, model.cfg.n_heads))
    n_steps = config.max_heads or len(heads)
    alone = hunt.costs([], heads)
    orders: dict[str, list[Head]] = {"greedy": [], "one-shot": sorted(heads, key=lambda h: alone[h])[:n_steps]}
    known = dict(alone)
    for step in track(range(n_steps), "greedy pruning", n_steps):
        left = sorted((h for h in heads if h not in orders["greedy"]), key=lambda h: known[h])
        if step:
            known |= hunt.costs(orders["greedy"], left[: config.n_candidates or None])
            left = left[: config.n_candidates or None]
        orders["greedy"].append(min(left, key=lambda h: known[h]))
    rng = np.random.default_rng(config.seed)
    for index in range(config.n_random):
        orders[f"random-{index}"] = [heads[i] for i in rng.permutation(len(heads))[:n_steps]]
    curves = {}
    for name in track(orders, "measuring the orders", len(orders)):
        curves[name] = _curve(gone, images, rest, readout, orders[name], config.batch_size)
    return VitPruningResult(orders, curves, config, hunt.n_tried)


@dataclass(frozen=True)
class _Gone:
    """A model whose heads can be taken away."""

    model: HookedModel
    fills: HeadFills
    ablation: str

    def hooks(self, heads: list[Head]) -> dict[str, Any]:
        """Hooks that overwrite the z of these heads."""
        hooks: dict[str, Any] = {}
        for layer in {h[0] for h in heads}:
            fill, gone = self.fills.of(self.ablation, layer), [h for at, h in heads if at == layer]

            def remove(z: Tensor, _name: str, fill: Fill = fill, gone: list[int] = gone) -> Tensor:
                z = z.clone()
                for head in gone:
                    fill_head(z, head, fill)
                return z

            hooks[f"blocks.{layer}.attn.hook_z"] = remove
        return hooks


class _Hunt:
    """What the absence of one more head costs on the search images: mean js, or cls_distance without a classifier."""

    def __init__(self, gone: _Gone, images: ImageDataset, chosen: Tensor, readout: Readout, batch_size: int) -> None:
        self.without, self.model, self.readout = gone.hooks, gone.model, readout
        self.batches = [(images.pixels[rows], rows.to(self.model.device)) for rows in chosen.split(batch_size)]
        self.suffixes = [Suffix(self.model, layer) for layer in range(self.model.cfg.n_layers)]
        self.clean = [self._answer(pixels) for pixels, _ in self.batches]
        self.n_images, self.n_tried = len(chosen), 0

    def _answer(self, pixels: Tensor) -> Answer:
        logits, cache = self.model.run_with_cache(pixels, "ln_final.hook_normalized")
        return logits, cache["ln_final.hook_normalized"]

    def costs(self, gone: list[Head], candidates: list[Head]) -> dict[Head, float]:
        """Cost of each candidate beside those gone; all start from the residual stream at their layer."""
        total = dict.fromkeys(candidates, 0.0)
        self.n_tried += len(candidates)
        metric = self.readout.metrics[0]
        layers = sorted({layer for layer, _ in candidates})
        for (pixels, rows), clean in zip(self.batches, self.clean, strict=True):
            with self.model.hooks(self.without(gone)):
                names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
                _, cache = self.model.run_with_cache(pixels, names)
            for layer, head in candidates:
                later = [h for h in gone if h[0] >= layer]
                with self.model.hooks(self.without([*later, (layer, head)])):
                    after = self.suffixes[layer](cache[f"blocks.{layer}.hook_resid_pre"])
                total[layer, head] += float(self.readout.compare(clean, after, rows)[metric].sum())
        return {h: value / self.n_images for h, value in total.items()}


def _curve(
    without: _Gone, images: ImageDataset, chosen: Tensor, readout: Readout, order: list[Head], batch_size: int
) -> dict[str, np.ndarray]:
    """Metric → [n_removed + 1, n_images]; the residual stream is kept up to the first layer that changes."""
    model = without.model
    collected: dict[str, list[list[np.ndarray]]] = {}
    suffixes = [Suffix(model, layer) for layer in range(model.cfg.n_layers)]
    for rows in chosen.split(batch_size):
        places = rows.to(model.device)
        _, cache = model.run_with_cache(images.pixels[rows], "blocks.*.hook_resid_pre")
        clean = suffixes[0](cache["blocks.0.hook_resid_pre"])
        for step in range(len(order) + 1):
            gone = order[:step]
            after = clean
            if gone:
                first = min(layer for layer, _ in gone)
                with model.hooks(without.hooks(gone)):
                    after = suffixes[first](cache[f"blocks.{first}.hook_resid_pre"])
            found = {name: right.float() for name, right in readout.correct(after, places).items()}
            compared = readout.compare(clean, after, places)
            found |= {name: compared[name] for name in ("js", "cls_distance") if name in compared}
            for name, value in found.items():
                steps = collected.setdefault(name, [[] for _ in range(len(order) + 1)])
                steps[step].append(value.cpu().numpy())
    return {n: np.stack([np.concatenate(s) for s in steps]).astype(np.float32) for n, steps in collected.items()}

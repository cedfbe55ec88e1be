"""Importance of ViT heads by pruning one at a time (Li et al. 2023, arXiv 2303.13731)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.common.fills import Fill, HeadFills, fill_head
from attlas.analyses.vit.readout import Answer, Readout, jensen_shannon, make_readout, metric_mean
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.stats import Interval, bootstrap_mean
from attlas.interp import HookedModel
from attlas.interp.prefix import Suffix, attend_once, entering, last_layer_for_prefix, reads_prefix_alone
from attlas.interp.require import patch_grid

# Tokens of a forward pass: all ablations of a layer go together, since its attention is the same for all, with so few
# images that their activations stay in the cache (CPU).
TOKENS = {"cpu": 4096, "cuda": 2**18}

__all__ = ["HeadImportance", "head_importance", "jensen_shannon"]


@dataclass(frozen=True)
class HeadImportance:
    """Effect of one ablation of every head.

    Attributes:
        per_image: metric → float32 [n_images, layer, head], the main metric first.
        ablation: what z became: "mean_per_position", "zero", "mean" or "resample" (then each value is a mean of draws).
    """

    per_image: dict[str, np.ndarray]
    ablation: str

    def intervals(self, seed: int, n_samples: int = 1000) -> dict[str, Interval]:
        """metric → (mean, low, high) [layer, head], 95 % interval over images (see data.stats)."""
        return {m: self.interval(m, v, seed, n_samples) for m, v in self.per_image.items()}

    def interval(self, metric: str, values: np.ndarray, seed: int, n_samples: int = 1000) -> Interval:
        """(mean, low, high) [...] of a metric's values [n_images, …]; means of draws are no counts of right answers."""
        if self.ablation == "resample":
            return bootstrap_mean(values, seed=seed, n_samples=n_samples)
        return metric_mean(metric, values, seed=seed, n_samples=n_samples)


@torch.no_grad()
def head_importance(
    model: HookedModel,
    images: ImageDataset,
    *,
    ablations: Sequence[str] = ("mean_per_position", "zero"),
    batch_size: int = 32,
    resample_draws: int = 4,
    seed: int = 0,
    readout: Readout | None = None,
    track: Track = no_track,
) -> list[HeadImportance]:
    """Ablate every head's z over an image set, each from the residual stream kept at its layer.

    The head's slice of hook_z becomes its mean over images at each position ("mean_per_position"), 0 ("zero"), its mean
    over images and positions alike ("mean": CLS gets what is mostly patches'), or that of another image of the set
    ("resample", `resample_draws` others drawn by the seed, the metrics averaged); see head_fills. Metrics per image:
    js, Jensen-Shannon divergence of the class distributions in nats; prob_drop, fall of the true class's probability
    (of the clean prediction's, without labels); accuracy_drop, correct before minus correct after; cls_distance,
    1 − cosine of the normed final state of CLS (of the patches' mean, where there is no CLS). A backbone with labelled
    images has knn_drop and probe_drop instead of the first three: accuracy of probes on its embeddings (vit_probe).
    """
    cfg = model.cfg
    readout = readout or make_readout(model, images, min(batch_size, 32))
    fills = HeadFills(model, images, ablations, batch_size=batch_size, n_draws=resample_draws, seed=seed)
    shape = (len(images), cfg.n_layers, cfg.n_heads)
    found = {a: {m: np.zeros(shape, dtype=np.float32) for m in readout.metrics} for a in ablations}
    suffixes = [Suffix(model, layer) for layer in range(cfg.n_layers)]
    variants = [(h, a, draw) for h in range(cfg.n_heads) for a in ablations for draw in range(fills.n_draws(a))]
    rows, columns = patch_grid(model, images.pixels)
    fitting = max(1, TOKENS.get(model.device.type, 4096) // (rows * columns + cfg.n_prefix_tokens))
    together = min(len(variants), fitting)
    groups = [variants[low : low + together] for low in range(0, len(variants), together)]
    places = torch.arange(len(images), device=model.device).split(max(1, min(batch_size, fitting // together)))

    narrow = last_layer_for_prefix if reads_prefix_alone(model, images.pixels[:1]) else contextlib.nullcontext

    def passes() -> Iterator[tuple[Tensor, Answer, Tensor, int, list[tuple[int, str]], list[tuple[int, Fill]]]]:
        for where in places:
            fills.turn_to(where)
            residuals = entering(model, images.pixels[where.cpu()])
            with narrow(model):
                clean = suffixes[-1](residuals[-1])
                for layer, residual in enumerate(residuals):
                    for group in groups:
                        put = [(head, fills.of(ablation, layer, draw)) for head, ablation, draw in group]
                        yield where, clean, residual, layer, [(head, a) for head, a, _ in group], put

    for where, clean, residual, layer, group, put in track(
        passes(), "pruning heads", len(places) * cfg.n_layers * len(groups)
    ):
        answers = _without(model, layer, put, suffixes[layer], residual)
        for (head, ablation), pruned in zip(group, answers, strict=True):
            for name, value in readout.compare(clean, pruned, where).items():
                share = value.float().cpu().numpy() / fills.n_draws(ablation)
                found[ablation][name][where.cpu().numpy(), layer, head] += share
    return [HeadImportance(found[a], a) for a in ablations]


def _without(
    model: HookedModel, layer: int, fills: list[tuple[int, Fill]], suffix: Suffix, residual: Tensor
) -> list[Answer]:
    """Answers with one head's z replaced, a copy of the batch for each (head, value); the layer attends once for all."""

    def ablate(z: Tensor) -> None:
        for copy, (head, fill) in zip(z.chunk(len(fills)), fills, strict=True):
            fill_head(copy, head, fill)

    with attend_once(model, layer, len(fills), ablate):
        logits, normed = suffix(residual.repeat(len(fills), 1, 1))
    return list(zip(logits.chunk(len(fills)), normed.chunk(len(fills)), strict=True))

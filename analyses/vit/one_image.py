"""One image: every head's attention, rollout, the answer, and the answer without some heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.common.columns import Head
from attlas.analyses.vit.readout import embedding, jensen_shannon
from attlas.analyses.vit.rollout import of_patches, rollout_step
from attlas.errors import ConfigError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.labels import class_probabilities
from attlas.interp.names import POOL
from attlas.interp.require import patch_grid
from attlas.saes.base import SAE
from attlas.saes.identity import check_sae


@dataclass(frozen=True)
class Answer:
    """What the model says of one image.

    Attributes:
        probabilities: float32 [n_classes], or None for a backbone.
        embedding: float32 [d_model], CLS of the normed last hidden state (without one what a pooling head draws from the
            patches, or their mean).
    """

    probabilities: np.ndarray | None
    embedding: np.ndarray


@dataclass(frozen=True)
class ImageAttention:
    """Attention of every head on one image.

    Attributes:
        patterns: float32 [layer, head, query, source], prefix tokens first.
        rollout: float32 [rows, columns] attention rollout from CLS (without one from a pooling head's query, or the mean over
            patches).
        answer: the model's.
        grid: patches as (rows, columns).
        n_prefix: tokens before the patches.
        pool: float32 [head, rows, columns], attention of a pooling head (SigLIP), or None.
    """

    patterns: np.ndarray
    rollout: np.ndarray
    answer: Answer
    grid: tuple[int, int]
    n_prefix: int
    pool: np.ndarray | None = None

    def maps(self, query: int | None) -> np.ndarray:
        """Attention over patches [layer, head, rows, columns] of one query.

        Args:
            query: a patch, row-major; None: the first prefix token (CLS), or the mean over patches without one.

        Raises:
            ConfigError: there is no such patch.
        """
        n_patches = self.grid[0] * self.grid[1]
        if query is not None and not 0 <= query < n_patches:
            raise ConfigError(f"patch {query} is not on the grid of {self.grid[0]} × {self.grid[1]}")
        if query is not None:
            rows = self.patterns[:, :, self.n_prefix + query]
        else:
            rows = self.patterns[:, :, 0] if self.n_prefix else self.patterns.mean(2)
        return rows[..., self.n_prefix :].reshape(*rows.shape[:2], *self.grid)


@torch.no_grad()
def image_attention(model: AnyModel, pixels: Tensor) -> ImageAttention:
    """Every head's attention on an image float [C, H, W].

    Raises:
        UnsupportedModelError: the model is no vision model.

    Example:
        >>> from attlas.analyses.vit import image_attention
        >>> found = image_attention(vit_model, images.pixels[0])
        >>> found.patterns.shape, found.grid  # [layer, head, query, source]
        ((4, 6, 65, 65), (8, 8))
        >>> found.maps(None).shape  # CLS over patches, [layer, head, rows, columns]
        (4, 6, 8, 8)
    """
    model = as_hooked(model)
    model.require_vision_model()
    batch = pixels[None].to(model.device, model.dtype)
    pooled = [POOL] if model.structure.pool is not None else []
    cache = model.capture(batch, ["blocks.*.attn.hook_pattern", *pooled])
    pool = cache[POOL][:, :, 0].float() if pooled else None
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"].float() for layer in range(model.cfg.n_layers)]
    so_far: Tensor | None = None
    for pattern in patterns:
        so_far = rollout_step(pattern, so_far)
    assert so_far is not None  # a model has layers
    grid, prefix = patch_grid(model, pixels), model.cfg.n_prefix_tokens
    return ImageAttention(
        patterns=torch.cat(patterns).cpu().numpy(),
        rollout=of_patches(so_far, prefix, pool)[0].reshape(grid).cpu().numpy(),
        answer=answer(model, pixels),
        grid=grid,
        n_prefix=prefix,
        pool=None if pool is None else pool[0].reshape(-1, *grid).cpu().numpy(),
    )


@torch.no_grad()
def answer(model: HookedModel, pixels: Tensor, without: Sequence[Head] = ()) -> Answer:
    """What the model says of an image float [C, H, W], with the z of some heads set to 0.

    Raises:
        UnsupportedModelError: the model is no vision model.
        ConfigError: there is no such head.
    """
    model.require_vision_model()
    cfg = model.cfg
    for layer, head in without:
        if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
            raise ConfigError(f"head {layer}.{head} is not there; {model.name} has {cfg.n_layers} × {cfg.n_heads}")
    state = "ln_final.hook_normalized"
    with model.hooks(_zero(without)):
        output, cache = model.run_with_cache(pixels[None].to(model.device, model.dtype), state)
    seen = embedding(model, cache[state])[0]
    probabilities = class_probabilities(model, output[0].float()).cpu().numpy() if cfg.n_classes else None
    return Answer(probabilities, seen.cpu().numpy())


def _zero(heads: Sequence[Head]) -> Mapping[str, Any]:
    hooks: dict[str, Any] = {}
    for layer in {at for at, _ in heads}:
        gone = [head for at, head in heads if at == layer]

        def ablate(z: Tensor, _name: str, gone: list[int] = gone) -> Tensor:
            z = z.clone()
            z[:, :, gone] = 0
            return z

        hooks[f"blocks.{layer}.attn.hook_z"] = ablate
    return hooks


def change(before: Answer, after: Answer) -> dict[str, float]:
    """How far two answers are apart: js in nats and prob_drop of the class first predicted (with a classifier);
    cls_distance, 1 − cosine of the embeddings."""
    a, b = (torch.from_numpy(x.embedding).double() for x in (before, after))
    found = {"cls_distance": float(1 - torch.nn.functional.cosine_similarity(a, b, dim=0))}
    if before.probabilities is not None and after.probabilities is not None:
        p, q = (torch.from_numpy(x).double() for x in (before.probabilities, after.probabilities))
        shares = [x / x.sum().clamp_min(1e-300) for x in (p, q)]  # probabilities of SigLIP's classes do not sum to 1
        found = {"js": float(jensen_shannon(*shares)), "prob_drop": float(p.max() - q[p.argmax()])} | found
    return found


@dataclass(frozen=True)
class FeatureHeat:
    """Where a sparse feature fires in an image; heat float32 [rows, columns], `strongest` its maximum over patches."""

    feature: int
    strongest: float
    heat: np.ndarray


@torch.no_grad()
def feature_heat(
    model: AnyModel, sae: SAE, pixels: Tensor, *, n_top: int = 12, features: Sequence[int] = ()
) -> list[FeatureHeat]:
    """The features that fire most strongly on patches of an image float [C, H, W], the strongest first.

    Args:
        features: those to show instead, in their order.

    Raises:
        ConfigError: the autoencoder does not say where it sits, or sits elsewhere.

    Example:
        >>> from attlas.analyses.vit import feature_heat
        >>> found = feature_heat(vit_model, vit_sae, images.pixels[0], n_top=3)
        >>> found[0].heat.shape  # [rows, columns] of patches
        (8, 8)
    """
    model = as_hooked(model)
    model.require_vision_model()
    hook = check_sae(sae, model)
    x = sae.flatten_heads(model.capture(pixels[None].to(model.device, model.dtype), hook)[hook])
    acts = sae.encode(x)[0, model.cfg.n_prefix_tokens :].float().clamp_min(0).cpu().numpy()
    grid = patch_grid(model, pixels)
    strongest = acts.max(0)
    chosen = list(features) or [int(f) for f in np.argsort(-strongest, kind="stable")[:n_top] if strongest[f] > 0]
    return [FeatureHeat(f, float(strongest[f]), acts[:, f].reshape(grid)) for f in chosen if 0 <= f < sae.cfg.d_sae]

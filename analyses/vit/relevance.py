"""Which patches raise a class's logit: gradient-weighted attention relevance (Chefer et al. 2021, arXiv 2103.15679).

Beside rollout, which knows no class: per layer Ā = E_heads[(∇A ⊙ A)⁺], ∇A the gradient of the class's logit by the attention
pattern, and R ← R + Ā·R from R = I. (The paper before it, 2012.09838, puts relevance by LRP in place of A and multiplies
I + Ā; this is the later, generic rule for self-attention.) What is read is CLS's row; without CLS that of a
pooling head's query, Ā·R of its own Ā (SigLIP), or the mean over patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.analyses.vit.rollout import map_batches, of_patches
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.interp.names import POOL


@torch.enable_grad()
def class_relevance(model: HookedModel, pixels: Tensor, classes: Tensor | None = None) -> Tensor:
    """Relevance of each patch for a class.

    Args:
        model: a vision model with a classifier.
        pixels: float [B, C, H, W].
        classes: int64 [B]; None takes the likeliest of each image.

    Returns: float32 [B, n_patches], 0 or more, on the CPU.

    Raises:
        ConfigError: a backbone, or a class that is not there.
    """
    if not model.cfg.n_classes:
        raise ConfigError(f"{model.name} has no classifier, so there is no class whose relevance could be told")
    if classes is not None and not bool(((classes >= 0) & (classes < model.cfg.n_classes)).all()):
        raise ConfigError(f"classes {sorted(set(classes.tolist()))}: {model.name} has 0–{model.cfg.n_classes - 1}")
    patterns: list[Tensor] = []
    probes: list[Tensor] = []

    def probe(pattern: Tensor, _name: str) -> Tensor:
        patterns.append(pattern.detach().float())
        probes.append(torch.zeros_like(pattern, requires_grad=True))
        return pattern + probes[-1]

    hooks = {"blocks.*.attn.hook_pattern": probe} | ({POOL: probe} if model.structure.pool is not None else {})
    with model.hooks(hooks):
        logits = model(pixels)
    target = logits.argmax(-1) if classes is None else classes.to(logits.device)
    gradients = list(torch.autograd.grad(logits.gather(-1, target[:, None]).sum(), probes, allow_unused=True))
    pool = None
    if model.structure.pool is not None:
        last, drawn = gradients.pop(), patterns.pop()[:, :, 0]
        pool = (
            None if last is None else (last[:, :, 0].float() * drawn).clamp_min(0)
        )  # None: logits of the patches' mean
    relevance = torch.eye(patterns[0].shape[-1], device=logits.device).expand(len(logits), -1, -1)
    for pattern, gradient in zip(patterns, gradients, strict=True):
        relevance = relevance + (gradient.float() * pattern).clamp_min(0).mean(1) @ relevance
    return of_patches(relevance, model.cfg.n_prefix_tokens, pool).cpu()


def class_relevance_of(
    model: HookedModel, images: ImageDataset, *, batch_size: int = 32, track: Track = no_track
) -> Tensor:
    """class_relevance of a whole image set, each for the class that the model itself finds likeliest, [n, n_patches]."""
    batches = map_batches(model, images, batch_size, 2**27)  # gradients are held beside the maps
    return torch.cat([class_relevance(model, pixels) for pixels in track(batches, "relevance")])

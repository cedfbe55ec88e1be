"""What a feature does to the logits on the direct path: through W_O, the final norm's weights and the unembedding.

The final norm is folded: its weights multiply the direction (LayerNorm's centring is applied too), its scale, which
depends on the token, is left out, and so is that of a norm behind attention. Effects are therefore comparable within a
feature, and in logits up to that scale; of models that cap their logits (Gemma 2), in logits before the cap.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from attlas.errors import UnsupportedModelError
from attlas.interp import AnyModel, HookedModel, as_hooked
from attlas.interp.names import layer_index
from attlas.interp.structure import linear_weight


@torch.no_grad()
def residual_directions(model: HookedModel, W_dec: Tensor, hook: str) -> Tensor:
    """What each decoder row adds to the residual stream, [F, d_model]: hook_z rows pass through W_O (and DINOv2's layer
    scale; of a norm behind attention, as Gemma 2 has, the weights), others stay."""
    if not hook.endswith("hook_z"):
        return W_dec.detach()
    layer = layer_index(hook)
    written = W_dec.detach() @ model.W_O(layer).flatten(0, 1).to(W_dec.dtype)
    behind = model.layer(layer).attn_out
    scale = model.norm_weight(behind) if "post_norm" in model.cfg.traits else getattr(behind, "lambda1", None)
    return written if scale is None else written * scale.detach().to(written.dtype)


def readout_weight(model: HookedModel) -> Tensor:
    """What a direction at every token of the normed state adds to the logits, [d_model, d_vocab or n_classes].

    That is the unembedding, or a classifier of CLS or of the tokens' mean. DINOv2's classifier reads CLS beside the mean
    of the patches: the sum of its halves. DeiT with a teacher averages two classifiers.

    Raises:
        UnsupportedModelError: a backbone, or a classifier that reads anything else.
    """
    weight = model.W_U
    second = getattr(model.hf, "distillation_classifier", None)
    if isinstance(second, nn.Linear):
        weight = (weight + linear_weight(second)) / 2
    d_model = model.cfg.d_model
    if weight.shape[0] == 2 * d_model and model.cfg.family == "vit":
        weight = weight[:d_model] + weight[d_model:]
    if weight.shape[0] != d_model:
        raise UnsupportedModelError(
            f"the classifier of {model.name} reads {weight.shape[0]} numbers, not d_model {d_model}: effects on its "
            "logits are not defined"
        )
    return weight


@torch.no_grad()
def logit_effects(
    model: AnyModel, W_dec: Tensor, hook: str, n: int = 10, chunk: int = 512
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The most promoted and most suppressed tokens (or classes) of every feature.

    Args:
        model: with an unembedding or classifier.
        W_dec: [F, D].
        hook: where the SAE sits.
        n: how many of each.
        chunk: features at a time; F × d_vocab is never held.

    Raises:
        UnsupportedModelError: no classifier, or one that reads neither CLS nor means (see `readout_weight`).

    Returns: (promoted values [F, n], promoted ids, suppressed values, suppressed ids), sorted by size.

    Example:
        >>> from attlas.analyses.features import logit_effects
        >>> top, ids, low, low_ids = logit_effects(model, sae.W_dec, hook, n=5)
        >>> top.shape, ids.shape  # [features, n]
        (torch.Size([32, 5]), torch.Size([32, 5]))
    """
    model = as_hooked(model)
    parts = []
    for effects in _effects(model, W_dec, hook, chunk):
        n = min(n, effects.shape[1])
        up, down = effects.topk(n), effects.topk(n, largest=False)
        parts.append((up.values, up.indices, down.values, down.indices))
    a, b, c, d = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return a, b, c, d


@torch.no_grad()
def top_effect_z(model: HookedModel, W_dec: Tensor, hook: str, chunk: int = 512) -> np.ndarray:
    """How far each direction's largest logit effect stands above its mean effect, in their standard deviations over the
    vocabulary (or classes): float64 [F]. It does not depend on the direction's length.

    Raises:
        UnsupportedModelError: as in `logit_effects`.
    """
    parts = []
    for effects in _effects(model, W_dec, hook, chunk):
        if not len(effects):
            continue  # no rows at all: torch warns of a spread of nothing
        spread = effects.std(1, correction=0).clamp_min(1e-12)
        parts.append(((effects.max(1).values - effects.mean(1)) / spread).double().cpu())
    return torch.cat(parts).numpy() if parts else np.zeros(0)


def _effects(model: HookedModel, W_dec: Tensor, hook: str, chunk: int) -> Iterator[Tensor]:
    """Logit effects [chunk, d_vocab] of the rows, in turn."""
    directions = residual_directions(model, W_dec, hook).float()
    if model.cfg.norm == "ln":
        directions = directions - directions.mean(-1, keepdim=True)
    unembed = readout_weight(model).float() * model.norm_weight(model.final_norm).float()[:, None]
    for piece in directions.split(chunk):
        yield piece @ unembed

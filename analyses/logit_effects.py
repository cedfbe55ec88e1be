"""What a feature does to the logits on the direct path: through W_O, the final norm's weights and the unembedding.

The final norm is folded: its weights multiply the direction (LayerNorm's centring is applied too), its scale, which
depends on the token, is left out. Effects are therefore comparable within a feature, and in logits up to that scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.interp import HookedModel


@torch.no_grad()
def residual_directions(model: HookedModel, W_dec: Tensor, hook: str) -> Tensor:
    """What each decoder row adds to the residual stream, [F, d_model]: hook_z rows pass through W_O, others stay."""
    if not hook.endswith("hook_z"):
        return W_dec.detach()
    layer = int(hook.split(".")[1])
    return W_dec.detach() @ model.W_O(layer).flatten(0, 1).to(W_dec.dtype)


@torch.no_grad()
def logit_effects(
    model: HookedModel, W_dec: Tensor, hook: str, n: int = 10, chunk: int = 512
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The most promoted and most suppressed tokens (or classes) of every feature.

    Args:
        model: with an unembedding or classifier.
        W_dec: [F, D].
        hook: where the SAE sits.
        n: how many of each.
        chunk: features at a time; F × d_vocab is never held.

    Returns: (promoted values [F, n], promoted ids, suppressed values, suppressed ids), sorted by size.
    """
    directions = residual_directions(model, W_dec, hook).float()
    if model.cfg.norm == "ln":
        directions = directions - directions.mean(-1, keepdim=True)
    weight: Tensor = model.final_norm.weight  # type: ignore[assignment]
    unembed = model.W_U.float() * weight.float()[:, None]
    n = min(n, unembed.shape[1])
    parts = []
    for piece in directions.split(chunk):
        effects = piece @ unembed
        up, down = effects.topk(n), effects.topk(n, largest=False)
        parts.append((up.values, up.indices, down.values, down.indices))
    a, b, c, d = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return a, b, c, d

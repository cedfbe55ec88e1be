"""Patching estimated from gradients: all sites for the price of a few runs.

Attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348): effect ≈ ∂metric/∂a · (a_source − a_base), the
gradient taken at the base run. With m steps of integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) the
gradient is averaged over midpoints of the straight line from a_base to a_source at that hook; then the estimates of a
hook's sites add up to the exact effect of patching the whole hook, up to the steps' width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attlas.analyses.circuits.sites import Site, _rows, quantity
from attlas.analyses.tasks.metrics import Metric
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.saes.decompose import SAEs, decompose


def gradients(
    model: HookedModel, tokens: Tensor, metric: Metric, hooks: Sequence[str], put: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """∂ Σ_prompts metric / ∂ activation at each hook, [B, T, …].

    Args:
        put: hook → activation to run with instead of its own.
    """
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, name: str) -> Tensor:
        # A new tensor that the rest of the pass must go through, so that its gradient is the activation's.
        value = tensor.clone() if put is None or name not in put else put[name].detach().clone().requires_grad_()
        kept[name] = value if value.requires_grad else value.requires_grad_()
        return value

    with torch.enable_grad(), model.hooks(dict.fromkeys(hooks, keep)):
        total = metric(model(tokens)).sum()
        found = torch.autograd.grad(total, [kept[hook] for hook in hooks], allow_unused=True)
    return {
        hook: torch.zeros_like(kept[hook]) if g is None else g.detach() for hook, g in zip(hooks, found, strict=True)
    }


def path_gradients(
    model: HookedModel,
    tokens: Tensor,
    metric: Metric,
    base: dict[str, Tensor],
    target: dict[str, Tensor],
    steps: int,
    track: Track = no_track,
) -> dict[str, Tensor]:
    """Gradients at each hook of `base`: at the base run (steps 0), or averaged over `steps` midpoints of the line to
    `target`, one hook at a time."""
    hooks = list(base)
    if steps == 0:
        return gradients(model, tokens, metric, hooks)
    found = {}
    for hook in track(hooks, "integrated gradients"):
        total = torch.zeros_like(base[hook])
        for step in range(steps):
            at = (step + 0.5) / steps
            point = base[hook] + at * (target[hook] - base[hook])
            total += gradients(model, tokens, metric, [hook], {hook: point})[hook]
        found[hook] = total / steps
    return found


@torch.no_grad()
def estimate(gradient: Tensor, base: Tensor, site: Site, value: Tensor, saes: SAEs) -> Tensor:
    """Gradient × (value − what stands there), one number a prompt, [B].

    Args:
        gradient, base: at the site's hook, [B, T, …].
        value: what an exact patch would put at the site.
    """
    sae = saes.get(site.hook)
    change = value - quantity(base, site, sae)
    if site.feature is not None:
        assert sae is not None
        weight = (sae.flatten_heads(gradient) @ sae.W_dec[site.feature].to(gradient.dtype))[_rows(base, site)]
    elif site.error:
        assert sae is not None
        weight = sae.flatten_heads(gradient)[_rows(base, site)]
    else:
        weight = gradient[_rows(base, site)]
        weight = weight if site.head is None else weight[..., site.head, :]
    return (weight * change).reshape(base.shape[0], -1).sum(-1)


@torch.no_grad()
def rank_features(
    gradient: Tensor, base: Tensor, reference: Tensor, hook: str, saes: SAEs, mode: str, n: int
) -> list[int]:
    """The n features of a hook with the largest mean estimate over prompts, by size, positions summed."""
    sae = saes[hook]
    weight = sae.flatten_heads(gradient) @ sae.W_dec.T.to(gradient.dtype)
    coefficients, other = decompose(sae, base).coefficients, decompose(sae, reference).coefficients
    value = {"zero": torch.zeros_like(coefficients), "mean": other.mean(0, keepdim=True).expand_as(coefficients)}.get(
        mode, other
    )
    effect = (weight * (value - coefficients)).sum(1).mean(0).abs()
    n = min(n, int((effect > 0).sum()))
    return [int(f) for f in effect.topk(n).indices]

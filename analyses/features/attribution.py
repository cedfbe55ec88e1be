"""Which heads write a feature: by the decoder's weights, and by direct attribution of an activation, which with what biases
add is the pre-activation (Kissane et al. 2024, arXiv 2406.17759).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.interp.names import layer_index
from attlas.kernels import FeatureDFA, feature_dfa
from attlas.saes.base import SAE
from attlas.saes.reading import encoder_columns, token_scale


@dataclass(frozen=True)
class Attribution:
    """P (sequence, position, feature) triples: the pre-activation is `dfa.total` + `constant`.

    Attributes:
        dfa: contributions by head and source.
        constant: [P] what b_enc (magnitudes of gated ones: b_mag) and b_dec add.
    """

    dfa: FeatureDFA
    constant: Tensor

    @property
    def pre_activation(self) -> Tensor:
        """[P]."""
        return self.dfa.total + self.constant


def attribution_hooks(model: HookedModel, hook: str) -> list[str]:
    """The hooks that attribution of features on a `hook_z` reads: queries and keys as they are multiplied, values, z.

    Raises:
        ConfigError: another hook, where heads cannot be told apart.
    """
    if not hook.endswith("hook_z"):
        raise ConfigError(f"attribution to heads needs features on hook_z, not '{hook}'; trace takes hook_attn_out too")
    kind, prefix = "rot_" if model.cfg.positional == "rotary" else "", hook.removesuffix("hook_z")
    return [f"{prefix}hook_{kind}q", f"{prefix}hook_{kind}k", f"{prefix}hook_v", hook]


@torch.no_grad()
def attribute_features(
    model: HookedModel,
    sae: SAE,
    hook: str,
    cache: Mapping[str, Tensor],
    features: Tensor,
    positions: Tensor,
    *,
    sequences: Tensor | None = None,
    path: str = "magnitude",
    keep_heads: bool = False,
) -> Attribution:
    """Attribute features at given destinations to heads and sources, exactly, whatever the architecture.

    Args:
        sae: on `hook`, a hook_z.
        cache: the activations of `attribution_hooks`.
        features, positions: int64 [P]; sequences: int64 [P] rows of the cache, default 0.
        path: "magnitude" (an active feature's activation), or of gated autoencoders "gate" (above 0 where active).
        keep_heads: also [P, head, src].

    Raises:
        ConfigError: a hook without heads, or a path that the autoencoder does not have.
    """
    *names, z_name = attribution_hooks(model, hook)
    q, k, v = (cache[name].transpose(1, 2) for name in names)
    rows = torch.zeros_like(positions) if sequences is None else sequences
    z = sae.flatten_heads(cache[z_name])
    scale = token_scale(sae, z[rows, positions])
    chosen, place = features.to(q.device).unique(return_inverse=True)
    columns, constants = encoder_columns(sae, chosen, path)
    dfa = feature_dfa(
        q,
        k,
        v,
        columns.to(q.dtype),
        place,
        positions,
        model.layers[layer_index(hook)].rule,
        sequences=rows,
        scale=scale,
        keep_heads=keep_heads,
    )
    return Attribution(dfa, constants[place].to(dfa.by_head.dtype))


def head_shares(W_dec: Tensor, n_heads: int) -> Tensor:
    """h(f, i) = ‖W_dec[f, head i]‖₂ / Σ_j ‖W_dec[f, head j]‖₂: [F, n_heads·d_head] → float32 [F, n_heads], rows sum to 1.

    Example:
        >>> from attlas.analyses.features import head_shares
        >>> head_shares(sae.W_dec, n_heads=6).shape  # [features, heads], rows add up to 1
        torch.Size([32, 6])
    """
    norms = W_dec.detach().float().unflatten(-1, (n_heads, -1)).norm(dim=-1)
    return norms / norms.sum(-1, keepdim=True).clamp_min(1e-30)


def head_spread(shares: Tensor) -> Tensor:
    """How many heads write a feature: exp of the shares' entropy, from 1 (one head) to n_heads (all alike), [F]."""
    return torch.special.entr(shares).sum(-1).exp()

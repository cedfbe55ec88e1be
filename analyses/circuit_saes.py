"""An activation as the sum of an autoencoder's features, its bias and its error, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.saes.base import SAE
from attlas.saes.identity import check_sae

SAEs = Mapping[str, SAE]


@dataclass(frozen=True)
class Parts:
    """x = amounts · W_dec + bias + error.

    Attributes:
        amounts: feature activations in units of W_dec rows, [..., F] (f, times the token's scale where an SAE normalises).
        bias: [..., D].
        error: what the features leave out, [..., D].
    """

    amounts: Tensor
    bias: Tensor
    error: Tensor


def decompose(sae: SAE, x: Tensor) -> Parts:
    """Split activations [..., D] (or [..., heads, d_head]) into features, bias and error."""
    flat = sae.flatten_heads(x)
    features = sae.encode(flat).to(flat.dtype)
    restore = sae._normalise(flat.to(sae.W_enc.dtype))[1]
    zero = torch.zeros_like(flat)
    shift = restore(zero)
    scale = (restore(zero + 1) - shift)[..., :1]
    bias = restore(zero + sae.b_dec.to(flat.dtype))
    amounts = features * scale
    return Parts(amounts, bias, flat - bias - amounts @ sae.W_dec.to(flat.dtype))


def encoder_rows(sae: SAE, x: Tensor, features: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each active feature as a linear function of the activation: f = row · x + constant.

    Args:
        sae: without per-token normalisation (that is not linear).
        x: one token's activation [D].
        features: indices; one that is not active gives its pre-activation.

    Returns: rows [n, D], constants [n].

    Raises:
        ConfigError: the SAE normalises each token.
    """
    if sae.cfg.normalisation != "none":
        raise ConfigError(
            f"the SAE of '{sae.cfg.hook_name}' normalises every token ({sae.cfg.normalisation}): its features are not "
            "linear in the activation, and tracing needs that; use an SAE without it"
        )
    index = torch.as_tensor(list(features), device=sae.W_enc.device)
    with torch.enable_grad():
        pre = sae.pre_activations(x.detach()).detach().requires_grad_()
        f = sae.activate(pre)
        # An activation acts on each feature alone once the active set is fixed: the sum's gradient is each one's slope.
        (slope,) = torch.autograd.grad(f.sum(), pre)
    f = f.detach()[index]
    slope = torch.where(f > 0, slope[index], torch.ones_like(f))
    rows = sae.W_enc.detach().T[index] * slope[:, None]
    value = torch.where(f > 0, f, pre.detach()[index])
    return rows, value - rows @ x.detach().to(rows.dtype)


def check_saes(model: HookedModel, saes: SAEs, *, need: str = "") -> dict[str, SAE]:
    """The SAEs on the model's device, checked against it.

    Args:
        need: a hook ending all must have, such as "hook_z".

    Raises:
        ConfigError: a hook is unknown or of another kind than `need`, or the widths differ.

    Warns: the SAE was trained on another model or another hook; says both.
    """
    checked = {}
    for hook, sae in saes.items():
        if hook not in model.hook_names():
            raise ConfigError(f"{model.name} has no hook '{hook}' for the SAE; give one of its hooks")
        if need and not hook.endswith(need):
            raise ConfigError(f"the SAE sits on '{hook}'; this needs SAEs on {need}, where heads can be told apart")
        check_sae(sae, model, hook)
        checked[hook] = sae.to(model.device)
    return checked


def check_feature(sae: SAE, feature: int) -> None:
    """Raise when there is no such feature.

    Raises:
        ConfigError: says the range.
    """
    if not 0 <= feature < sae.cfg.d_sae:
        raise ConfigError(
            f"feature {feature} is out of range; the SAE of '{sae.cfg.hook_name}' has 0–{sae.cfg.d_sae - 1}"
        )

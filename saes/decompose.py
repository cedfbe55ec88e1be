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
from attlas.saes.reading import encoder_columns, token_scale

SAEs = Mapping[str, SAE]


@dataclass(frozen=True)
class Decomposition:
    """x = coefficients · W_dec + bias + error.

    Attributes:
        coefficients: feature activations in units of W_dec rows, [..., F] (f, times the token's scale where an SAE normalises).
        bias: [..., D].
        error: what the features leave out, [..., D].
    """

    coefficients: Tensor
    bias: Tensor
    error: Tensor


def decompose(sae: SAE, x: Tensor) -> Decomposition:
    """Split activations [..., D] (or [..., heads, d_head]) into features, bias and error."""
    flat = sae.flatten_heads(x)
    features = sae.encode(flat).to(flat.dtype)
    shift, _, factor = (t.to(flat.dtype) for t in sae.token_statistics(flat.to(sae.W_enc.dtype)))
    bias = sae.b_dec.to(flat.dtype) * factor + shift
    coefficients = features * factor
    return Decomposition(coefficients, bias, flat - bias - coefficients @ sae.W_dec.to(flat.dtype))


def encoder_rows(sae: SAE, x: Tensor, features: Sequence[int], path: str = "magnitude") -> tuple[Tensor, Tensor]:
    """Features at one token as linear functions of its activation, any normalisation frozen: row · x + constant.

    Where a feature is active the magnitude is its activation (see `attlas.saes.reading`).

    Args:
        x: one token's activation [D].
        features: indices.
        path: "magnitude", or "gate" of a gated autoencoder.

    Returns: rows [n, D], constants [n], float64.

    Raises:
        ConfigError: the autoencoder has no such path.
    """
    index = torch.as_tensor(list(features), device=sae.W_enc.device)
    columns, constants = encoder_columns(sae, index, path)
    return columns.T.double() * token_scale(sae, x).double(), constants.double()


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

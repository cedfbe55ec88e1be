"""A feature's pre-activation as a linear function of its token, exactly: s(x) · (x·w) + c.

w is the encoder's column, c what the biases add, and s(x) the scale of the token's normalisation, frozen at its measured
value *(ours)*; a layer norm subtracts the token's mean, which is linear, so that it moves into w. Where a feature is active
this is its activation, in every architecture here. A gated autoencoder has two such functions: the *magnitude*, which an
active feature's activation is, and the *gate*, which has to be above 0 for it to be active.

| normalisation | w | s(x) | c |
|---|---|---|---|
| none | W_enc[:, f] | 1 | b_enc − b_dec·W_enc |
| layer_norm | W_enc[:, f] less its mean | 1 / (std x + 1e-5) | the same |
| constant_norm_rescale | W_enc[:, f] | √D / ‖x‖ | the same |

Without `apply_b_dec_to_input` c is b_enc alone. Magnitudes of gated ones: W_enc · e^{r_mag} for W_enc, b_mag for b_enc.
Dataset-wide scales and whitening are folded into the weights when an autoencoder is opened (`attlas.saes.formats.scaler`).
"""

from __future__ import annotations

from torch import Tensor

from attlas.errors import ConfigError
from attlas.saes.architectures.gated import GatedSAE
from attlas.saes.base import SAE

PATHS = ("magnitude", "gate")


def encoder_paths(sae: SAE) -> tuple[str, ...]:
    """The paths an autoencoder's encoder has: both of `PATHS` when gated, else the magnitude."""
    return PATHS if isinstance(sae, GatedSAE) else PATHS[:1]


def encoder_columns(sae: SAE, features: Tensor | None = None, path: str = "magnitude") -> tuple[Tensor, Tensor]:
    """(w [D, n], c [n]) of features (default all), in the autoencoder's dtype.

    Args:
        features: int64 [n].
        path: "magnitude", or "gate" of a gated autoencoder.

    Raises:
        ConfigError: the autoencoder has no such path.
    """
    if path not in encoder_paths(sae):
        raise ConfigError(f"path '{path}' is not in a {sae.arch} autoencoder; use {' or '.join(encoder_paths(sae))}")
    index = slice(None) if features is None else features
    W, bias = sae.W_enc.detach()[:, index], sae.b_enc.detach()[index]
    if isinstance(sae, GatedSAE) and path == "magnitude":
        W, bias = W * sae.r_mag.detach()[index].exp(), sae.b_mag.detach()[index]
    if sae.cfg.apply_b_dec_to_input:
        bias = bias - sae.b_dec.detach() @ W
    return W - W.mean(0) if sae.cfg.normalisation == "layer_norm" else W, bias


def token_scale(sae: SAE, x: Tensor) -> Tensor:
    """s(x) of tokens [..., D] → [...], in the autoencoder's dtype."""
    return 1 / sae.token_statistics(x.to(sae.W_enc.dtype))[1][..., 0]

"""Run a model with autoencoders in place of activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.interp.model import HookedModel


def with_error_term(x: Tensor, changed: Tensor, plain: Tensor) -> Tensor:
    """x + (changed − plain), all [..., D]: exactly x while `changed` is `plain`; gradients flow through `changed` alone."""
    return x.detach() + (changed - plain.detach())


@contextlib.contextmanager
def splice(model: HookedModel, saes: Mapping[str, Any], use_error_term: bool = True) -> Iterator[HookedModel]:
    """Replace each hook's activation by its autoencoder's reconstruction.

    Args:
        model: the model.
        saes: hook name → anything that maps [..., d_in] to its reconstruction and has cfg.d_in.
        use_error_term: add what the reconstruction misses (without gradient), so that the clean run is exact and only
            interventions on features change the output.

    Raises:
        ConfigError: d_in is not the hook's width (both numbers are named).
    """

    def replace(sae: Any) -> Any:
        def fn(tensor: Tensor, name: str) -> Tensor:
            flat = tensor.flatten(-2) if name.endswith(("hook_z", "hook_q", "hook_k", "hook_v")) else tensor
            if flat.shape[-1] != sae.cfg.d_in:
                raise ConfigError(f"the SAE for '{name}' has d_in {sae.cfg.d_in}, the hook is {flat.shape[-1]} wide")
            x_hat = sae(flat).to(flat.dtype)  # the whole forward: some SAEs normalise each token
            if use_error_term:
                x_hat = with_error_term(flat, x_hat, x_hat)
            return x_hat.reshape(tensor.shape)

        return fn

    with model.hooks({name: replace(sae) for name, sae in saes.items()}):
        yield model

"""Run only the last layers of a vision model, from a residual stream kept earlier (prefix reuse)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import UnsupportedModelError
from attlas.interp.model import HookedModel


class _Feed(nn.Module):
    """Stands where the embeddings were and returns the residual stream it was given."""

    residual: Tensor

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings  # models ask it for its dtype

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.residual


class Suffix:
    """Layers `layer`… of a vision model and its head, sharing all weights; the model itself is not changed.

    Args:
        model: a vision model.
        layer: the first layer to run.

    Raises:
        UnsupportedModelError: the model is no vision model.
    """

    def __init__(self, model: HookedModel, layer: int) -> None:
        if model.cfg.family != "vit":
            raise UnsupportedModelError(f"{model.name} is a {model.cfg.family} model; a suffix needs a vision model")
        model.layer(layer)
        self.model = model
        self._feed = _Feed(model.anatomy.embed)
        self.hf = self._shorten(model.hf, layer)

    def _shorten(self, module: nn.Module, layer: int) -> nn.Module:
        """A shallow copy down to the module list that holds the layers, and to the embeddings."""
        first = self.model.layers[0].block
        short = copy.copy(module)
        short._modules = dict(module._modules)
        for name, child in module._modules.items():
            if child is None:
                continue
            if child is self.model.anatomy.embed:
                short._modules[name] = self._feed
            elif isinstance(child, nn.ModuleList) and len(child) and child[0] is first:
                short._modules[name] = nn.ModuleList(list(child)[layer:])
            elif any(m is first or m is self.model.anatomy.embed for m in child.modules()):
                short._modules[name] = self._shorten(child, layer)
        return short

    def __call__(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Run from resid_pre [B, T, d_model] of the first layer.

        Returns: (logits [B, n_classes], or the last hidden state of a backbone; the normed last hidden state
        [B, T, d_model]).
        """
        normed: list[Tensor] = []
        handle = self.model.anatomy.final_norm.register_forward_hook(lambda _m, _a, out: normed.append(out))
        self._feed.residual = residual
        size = self.model.cfg.image_size
        pixels = torch.empty(residual.shape[0], 3, *size, dtype=residual.dtype, device=residual.device)
        try:
            output = self.hf(pixel_values=pixels)
        finally:
            handle.remove()
            del self._feed.residual
        logits = getattr(output, "logits", None)
        return (logits if logits is not None else output.last_hidden_state), normed[-1]

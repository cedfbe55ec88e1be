"""Run only the last layers of a model from a residual stream kept earlier, so that many interventions share a prefix."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attlas.interp.model import HookedModel


def over_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's arguments with each tensor changed, in tuples and dicts too; all else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: over_tensors(item, change) for key, item in value.items()}
    return tuple(over_tensors(item, change) for item in value) if isinstance(value, tuple) else value


@contextlib.contextmanager
def attend_once(model: HookedModel, layer: int, n_copies: int, edit: Callable[[Tensor], None]) -> Iterator[None]:
    """For copies of a batch that differ only behind a layer's z: the layer attends once, for the first copy.

    `edit` changes z of all copies [n_copies·B, T, head, d_head] in place, before the output projection.
    """
    parts = model.layers[layer]

    def shorten(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        n_rows = (args[0] if args else kwargs["hidden_states"]).shape[0]

        def first(x: Tensor) -> Tensor:
            return x[: n_rows // n_copies] if x.ndim > 1 and x.shape[0] == n_rows else x

        return over_tensors(args, first), over_tensors(kwargs, first)

    def copies(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        z = args[0].repeat(n_copies, *[1] * (args[0].ndim - 1))
        edit(z.unflatten(-1, (model.cfg.n_heads, model.cfg.d_head)))
        return z, *args[1:]

    handles = [parts.attn.register_forward_pre_hook(shorten, with_kwargs=True)]
    handles.append(parts.out_proj.register_forward_pre_hook(copies))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entering(model: HookedModel, inputs: Tensor) -> list[Tensor]:
    """The residual stream [B, T, d_model] in front of every layer; the last layer itself is not run."""
    last = model.cfg.n_layers - 1
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(last)]
    residual, cache = model.run_with_cache(inputs, names, stop_at_layer=last)
    return [*(cache[name] for name in names), residual]


@contextlib.contextmanager
def last_layer_for_prefix(model: HookedModel) -> Iterator[None]:
    """While this lasts, a vision model's last layer, behind its attention, works on the prefix tokens (CLS …) alone.

    For a `Suffix`; the whole model would keep a shortened hook_resid_pre. See `reads_prefix_alone`.
    """
    n, parts = model.cfg.n_prefix_tokens, model.layers[-1]
    whole: list[Tensor] = []

    def shorten(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        whole.append(args[0])
        return args[0][:, :n], *args[1:]

    handles = [
        parts.block.register_forward_pre_hook(shorten),
        model.ln1(model.cfg.n_layers - 1).register_forward_pre_hook(lambda _module, _args: (whole.pop(),)),
        parts.out_proj.register_forward_pre_hook(lambda _module, args: (args[0][:, :n], *args[1:])),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reads_prefix_alone(model: HookedModel, sample: Tensor) -> bool:
    """Whether the logits, and the prefix's final state, stay what they are without the last layer's patches.

    Tried out on `sample` (pixels [B, C, H, W]), since heads of one family differ: ViT's reads CLS, DINOv2's patches too.
    """
    n = model.cfg.n_prefix_tokens
    if not n:
        return False
    suffix, residual = Suffix(model, model.cfg.n_layers - 1), entering(model, sample)[-1]
    logits, state = suffix(residual)
    try:
        with last_layer_for_prefix(model):
            short_logits, short = suffix(residual)
    except (RuntimeError, ValueError, IndexError):
        return False
    pairs = [(short, state if state.ndim == 2 else state[:, :n])] + (
        [(short_logits, logits)] if model.cfg.n_classes else []
    )
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


class Prefix:
    """One dense forward pass, kept: the residual stream in front of every layer, and what else each layer was given.

    Args:
        model: a text model, or a vision model.
        inputs: tokens int64 [B, T] or pixels [B, C, H, W].

    Attributes:
        residual: a tensor [B, T, d_model] a layer.
        output: logits of the dense pass.
    """

    def __init__(self, model: HookedModel, inputs: Tensor) -> None:
        self.model = model
        self.n_rows = inputs.shape[0]
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.residual: list[Tensor] = []
        with self._recording():
            self.output = model(inputs)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            self.residual.append(args[0] if args else kwargs.pop("hidden_states"))
            self._calls.append((args[1:], kwargs))

        handles = [p.block.register_forward_pre_hook(record, with_kwargs=True) for p in self.model.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run_from(self, layer: int, residual: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Go on from `layer`.

        Args:
            residual: [n·B, T, d_model]: n copies of the batch, one after another.
            read: logits of one copy → what is wanted of it; only one copy's logits are held at a time.

        Returns: the n results, stacked.
        """
        copies = residual.shape[0] // self.n_rows
        if self.model.cfg.family == "vit":
            logits = Suffix(self.model, layer)(residual)[0]
            return torch.stack([read(part) for part in logits.split(self.n_rows)])

        def follow(x: Tensor) -> Tensor:
            """Masks and rotations that hold one row a sequence follow the copies; those for all sequences stay."""
            per_row = x.ndim > 1 and x.shape[0] == self.n_rows > 1
            return x.repeat(copies, *[1] * (x.ndim - 1)) if per_row else x

        for parts, (args, kwargs) in zip(self.model.layers[layer:], self._calls[layer:], strict=True):
            args, kwargs = over_tensors(args, follow), over_tensors(kwargs, follow)
            output = parts.block(residual, *args, **kwargs)
            residual = output[0] if isinstance(output, tuple) else output
        norm, unembed = self.model.final_norm, self.model.structure.unembed
        assert unembed is not None
        cap = self.model.structure.capped
        return torch.stack([read(cap(unembed(norm(part)))) for part in residual.split(self.n_rows)])


class _Feed(nn.Module):
    """Stands where the embeddings were and returns the residual stream it was given (and what they return beside it)."""

    residual: Tensor

    def __init__(self, embeddings: Any, n_more: int) -> None:
        super().__init__()
        self.patch_embeddings = getattr(embeddings, "patch_embeddings", None)  # models ask it for its dtype
        self._more = (None,) * n_more

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return (self.residual, *self._more) if self._more else self.residual


class Suffix:
    """Layers `layer`… of a vision model and its head, sharing all weights; the model itself is not changed.

    Args:
        model: a vision model.
        layer: the first layer to run.

    Raises:
        UnsupportedModelError: the model is no vision model.
    """

    def __init__(self, model: HookedModel, layer: int) -> None:
        model.require_vision_model()
        model.layer(layer)
        self.model = model
        self._feed = _Feed(model.structure.embed, 2 if model.structure.shuffles else 0)
        self.hf = self._shorten(model.hf, layer)

    def _shorten(self, module: nn.Module, layer: int) -> nn.Module:
        """A shallow copy down to the module list that holds the layers, and to the embeddings."""
        first = self.model.layers[0].block
        short = copy.copy(module)
        short._modules = dict(module._modules)
        for name, child in module._modules.items():
            if child is None:
                continue
            if child is self.model.structure.embed:
                short._modules[name] = self._feed
            elif child is self.model.structure.pre_norm:
                short._modules[name] = nn.Identity()  # the residual stream is behind it
            elif isinstance(child, nn.ModuleList) and len(child) and child[0] is first:
                short._modules[name] = nn.ModuleList(list(child)[layer:])
            elif any(m is first or m is self.model.structure.embed for m in child.modules()):
                short._modules[name] = self._shorten(child, layer)
        return short

    def __call__(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Run from resid_pre [B, T, d_model] of the first layer.

        Returns: (logits [B, n_classes], or the last hidden state of a backbone; the normed last hidden state
        [B, T, d_model], of CLIP that of CLS, [B, d_model]).
        """
        normed: list[Tensor] = []
        handle = self.model.structure.final_norm.register_forward_hook(lambda _m, _a, out: normed.append(out))
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

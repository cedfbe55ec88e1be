"""HookedModel: a Hugging Face model as it is, with TransformerLens's hook names on top."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from attlas.data.tokenizing import begun, bos_of
from attlas.data.workspace import Ref
from attlas.errors import (
    ConfigError,
    ContextLengthError,
    LayerRangeError,
    NonFiniteError,
    PromptError,
    UnsupportedModelError,
)
from attlas.interp.arguments import check_arguments, check_ids, padded_positions
from attlas.interp.engine import HookEngine, HookFn, Registration, StopForward
from attlas.interp.families import describe, tower
from attlas.interp.finite import is_finite, require_finite
from attlas.interp.names import IN_FRONT, NameFilter, hook_names, layer_of, match_hooks
from attlas.interp.splice import splice
from attlas.interp.tokens import token_texts
from attlas.interp.vision.inputs import image_inputs, with_notes
from attlas.interp.weights import Weights
from attlas.interp.wrappers.compiled import Eager, has_hooks, uncompiled
from attlas.kernels.cpu.crew import crew, share

Cache = dict[str, Tensor]


class HookedModel(Weights):
    """A model whose attention can be read and edited by name.

    The module in `.hf` is untouched: its own SDPA attention runs, and torch hooks sit on it only while a capture or a
    `hooks` context is open. A module that went through `torch.compile` runs uncompiled meanwhile. Gradients follow
    torch's grad mode, and what a hook reads is in the graph of the output, patterns and norm scales too; wrap calls in
    `torch.no_grad()` where no gradient is wanted (`capture` does).

    Attributes:
        hf: the Hugging Face module that runs.
        whole: the module it is a part of (of CLIP and SigLIP: beside the text tower), or the same.
        recorded: what runs record of it beside name and hash: the classes of a zero-shot classifier.
        cfg: shape and kind (ModelConfig).
        name, weight_hash, ref: what the manifest records.
        tokenizer: the model's tokenizer, or None.
        image_spec: how images become pixels (vision models), or None.

    Example:
        >>> from attlas import HookedModel, load_model
        >>> model: HookedModel = load_model("gpt2-mini", device="cpu")
        >>> logits, cache = model.run_with_cache(text.tokens, ["blocks.*.attn.hook_z", "blocks.3.attn.hook_pattern"])
        >>> cache["blocks.0.attn.hook_z"].shape  # [B, T, heads, d_head]
        torch.Size([8, 24, 6, 32])
        >>> cache["blocks.3.attn.hook_pattern"].shape  # [B, heads, T, T]
        torch.Size([8, 6, 24, 24])
        >>> with model.hooks({"blocks.3.attn.hook_z": lambda z, name: z * 0}):
        ...     ablated = model(text.tokens)
        >>> bool((model.cross_entropy(text.tokens, ablated) != model.cross_entropy(text.tokens, logits)).any())  # [B, T − 1]
        True
    """

    def __init__(
        self,
        hf: nn.Module,
        *,
        name: str,
        weight_hash: str,
        tokenizer: Any = None,
        image_spec: Any = None,
    ) -> None:
        self.whole: Any = uncompiled(hf)
        part = tower(self.whole)
        self.hf: Any = hf if part is self.whole else part
        self.name = name
        self.weight_hash = weight_hash
        self.tokenizer = tokenizer
        self.image_spec = image_spec
        self.recorded: dict[str, Any] = {}
        self.structure = with_notes(describe(uncompiled(self.hf)), self.whole, name)
        self._names = hook_names(self.structure)
        self._engine = HookEngine(self.structure)

    def __repr__(self) -> str:
        c = self.cfg
        kv = f" ({c.n_kv_heads} kv)" if c.n_kv_heads != c.n_heads else ""
        return (
            f"HookedModel({self.name!r}, {c.family}, {c.n_layers} layers × {c.n_heads} heads{kv}, d_model {c.d_model})"
        )

    @property
    def ref(self) -> Ref:
        return Ref(self.name, self.weight_hash)

    @property
    def absent_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) that a compact pruned checkpoint lacks: zeros here, whose attention maps mean nothing."""
        return getattr(self.hf, "attlas_absent", ())

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    # -- running ---------------------------------------------------------------------------------------------------

    def hook_names(self) -> tuple[str, ...]:
        """Every hook name, in the order a forward pass reaches them."""
        return self._names

    def __call__(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        """Logits [B, T, d_vocab] or [B, n_classes]; the last hidden state [B, T, d_model] of a backbone.

        Args:
            inputs: tokens int64 [B, T], or pixels float [B, C, H, W].

            kwargs: passed to the Hugging Face module, such as attention_mask [B, T] (1 = token, 0 = padding).
                Positions are counted from the first token the mask leaves, as `generate` does.

        Raises:
            ConfigError: an argument the module does not know, or one that Attlas has another way for.
            ContextLengthError: the sequence is longer than the context window.
            NonFiniteError: the output holds NaN or infinity, and no intervention is open; names where they begin.
        """
        check_arguments(self.hf, kwargs)
        output = self._forward(inputs, dict(kwargs))
        if not self._engine.registrations and not is_finite(output):
            self._locate(inputs, kwargs)
        return output

    def _locate(self, inputs: Tensor, kwargs: dict[str, Any]) -> NoReturn:
        """Run once more and name the first activation that is not finite."""
        with torch.no_grad():
            require_finite(self.run_with_cache(inputs, check_finite=False, **kwargs)[1])
        raise NonFiniteError(f"the output of {self.name} holds NaN or infinity; check weights, use float32")

    def _forward(self, inputs: Tensor, kwargs: dict[str, Any]) -> Tensor:
        inputs = self._check(inputs)
        if self.cfg.family == "vit":
            kwargs |= image_inputs(self.structure, inputs.to(self.dtype), self.name)
        else:
            kwargs |= {"input_ids": inputs, "use_cache": False, **padded_positions(kwargs)}
        hooked = "torch._dynamo" in sys.modules and has_hooks(uncompiled(self.hf))
        with Eager() if hooked else contextlib.nullcontext():
            output = self.hf(**kwargs)
        for kind in ("logits", "last_hidden_state"):
            if (found := getattr(output, kind, None)) is not None:
                return found
        raise UnsupportedModelError(
            f"{type(uncompiled(self.hf)).__name__} returns neither logits nor hidden states; open a model with another head"
        )

    def _check(self, inputs: Tensor) -> Tensor:
        if self.cfg.family == "vit":
            if inputs.ndim != 4 or not inputs.is_floating_point():
                raise ConfigError(f"pixels must be float [B, C, H, W], not {inputs.dtype} {tuple(inputs.shape)}")
            channels = getattr(self.hf.config, "num_channels", inputs.shape[1])
            if inputs.shape[1] != channels:
                raise ConfigError(f"{self.name} takes images of {channels} channels, not {inputs.shape[1]}")
        else:
            if inputs.ndim == 1:
                inputs = inputs[None]
            if inputs.ndim != 2 or inputs.is_floating_point():
                raise ConfigError(f"tokens must be integers [B, T], not {inputs.dtype} {tuple(inputs.shape)}")
            if inputs.shape[1] > self.cfg.n_ctx:
                raise ContextLengthError(
                    f"a sequence of {inputs.shape[1]} tokens is longer than the context window of {self.name} "
                    f"({self.cfg.n_ctx}); use seq_len ≤ {self.cfg.n_ctx}"
                )
            n_rows = getattr(self.structure.embed, "num_embeddings", self.cfg.d_vocab)
            check_ids(inputs, n_rows, self.name, self.tokenizer)
        return inputs.to(self.device)

    @contextlib.contextmanager
    def hooks(self, functions: Mapping[str, HookFn]) -> Iterator[HookedModel]:
        """Interventions: `with model.hooks({"blocks.1.attn.hook_z": fn}): model(tokens)`.

        Args:
            functions: name or glob → function(tensor, hook_name) → new tensor, or None. Changes in place count too. A
                changed rot_q, rot_k, attn_scores or pattern makes z anew from it, a changed scale the normed tensor, a
                changed result (a head's z · W_O) the sum over heads.
                In training with attention dropout, hook_pattern is the dropped-out pattern and z is made from it.

        Raises:
            HookNameError: a name matches nothing.
        """
        registrations: list[Registration] = [
            (name, fn) for pattern, fn in functions.items() for name in match_hooks(pattern, self._names)
        ]
        self._engine.add(registrations)
        try:
            yield self
        finally:
            self._engine.remove(registrations)

    def run_with_cache(
        self,
        inputs: Tensor,
        names: NameFilter = None,
        stop_at_layer: int | None = None,
        *,
        check_finite: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Cache]:
        """Run and keep activations.

        Args:
            inputs: tokens int64 [B, T], or pixels float [B, C, H, W].
            names: hook names, globs ("blocks.*.attn.hook_z"), or a predicate; None keeps all but scores, patterns and
                hook_result.
            stop_at_layer: run layers before this one only; negative counts from the end, as in TransformerLens.
            check_finite: raise on NaN or infinity, naming layer and hook; None: unless an intervention is open.
            kwargs: passed to the Hugging Face module, such as attention_mask; unknown ones are refused.

        Returns:
            (output, cache): logits or last hidden state, or with stop_at_layer the residual stream [B, T, d_model]
            that enters that layer; cache maps names to tensors.

        Raises:
            HookNameError, LayerRangeError, ContextLengthError, NonFiniteError.
        """
        check_arguments(self.hf, kwargs)
        n_layers = self.cfg.n_layers
        check_finite = not self._engine.registrations if check_finite is None else check_finite
        cache: Cache = {}
        wanted = match_hooks(names, self._names)

        def keep(tensor: Tensor, name: str) -> None:
            cache[name] = tensor

        registrations: list[Registration] = [(name, keep) for name in wanted]
        self._engine.add(registrations)
        try:
            with contextlib.ExitStack() as stack:
                if stop_at_layer is not None:
                    stop = stop_at_layer + n_layers if stop_at_layer < 0 else stop_at_layer
                    if not 0 <= stop <= n_layers:
                        raise LayerRangeError(f"stop_at_layer {stop_at_layer} is out of range 0–{n_layers}")
                    late = [n for n in wanted if (layer_of(n) if layer_of(n) is not None else n_layers) >= stop]  # type: ignore[operator]
                    late = [n for n in late if n not in ("hook_embed", "hook_pos_embed", *IN_FRONT)]
                    if late and names is not None:
                        raise ConfigError(f"'{late[0]}' is not reached when stopping at layer {stop_at_layer}")
                    stack.enter_context(self._stopping(stop))
                try:
                    output = self._forward(inputs, dict(kwargs))
                except StopForward as stopped:
                    output = stopped.residual  # type: ignore[assignment]
        finally:
            self._engine.remove(registrations)
        if check_finite:
            require_finite(cache)
            if not is_finite(output):
                self._locate(inputs, kwargs)
        return output, cache

    @contextlib.contextmanager
    def _stopping(self, layer: int) -> Iterator[None]:
        """Leave the forward pass where `layer` would begin (n_layers: at the final norm)."""
        module = self.layers[layer].block if layer < self.cfg.n_layers else self.structure.final_norm

        def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise StopForward(args[0] if args else kwargs["hidden_states"])

        handle = module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def capture(self, inputs: Tensor, names: NameFilter, *, check_finite: bool | None = None, **kwargs: Any) -> Cache:
        """Only the named activations, without gradients; nothing after the last layer needed is computed.

        Args: as in run_with_cache. Returns: name → tensor.
        """
        check_arguments(self.hf, kwargs)
        check_finite = not self._engine.registrations if check_finite is None else check_finite
        wanted = match_hooks(names, self._names)
        last = max((self._depth(name) for name in wanted), default=0)
        if last > self.cfg.n_layers:
            return self.run_with_cache(inputs, wanted, check_finite=check_finite, **kwargs)[1]
        in_attention = all(self._depth(n) < last or ".attn." in n for n in wanted)
        if not in_attention:
            return self.run_with_cache(inputs, wanted, stop_at_layer=last, check_finite=check_finite, **kwargs)[1]
        return self._capture_attention(inputs, wanted, last - 1, check_finite, kwargs)

    def _depth(self, name: str) -> int:
        """How many layers must run for a name: 0 for embeddings, n_layers + 1 past the last."""
        layer = layer_of(name)
        if layer is not None:
            return layer + 1
        return 0 if name.startswith("hook_") else self.cfg.n_layers + 1

    def _capture_attention(
        self, inputs: Tensor, wanted: tuple[str, ...], layer: int, check_finite: bool, kwargs: dict[str, Any]
    ) -> Cache:
        """Capture that ends inside the last layer's attention: its output projection and MLP are not computed."""
        parts = self._chunks(inputs, wanted, kwargs)
        caches: list[Cache] = [{} for _ in parts]
        here = threading.local()

        def keep(tensor: Tensor, name: str) -> None:
            caches[here.part][name] = tensor

        def run(part: int) -> None:
            here.part = part
            with contextlib.suppress(StopForward):
                self._forward(parts[part], dict(kwargs))

        def stop(_tensor: Tensor, _name: str) -> None:
            raise StopForward

        registrations: list[Registration] = [(name, keep) for name in wanted]
        end = f"blocks.{layer}.attn.hook_result"
        registrations.append((end if end in wanted else f"blocks.{layer}.attn.hook_z", stop))
        self._engine.add(registrations)
        try:
            if len(parts) == 1:
                run(0)
            else:
                share(range(len(parts)), run, math.inf)
        finally:
            self._engine.remove(registrations)
        cache = caches[0] if len(parts) == 1 else {name: torch.cat([c[name] for c in caches]) for name in caches[0]}
        if check_finite:
            require_finite(cache)
        return cache

    def _chunks(self, inputs: Tensor, wanted: tuple[str, ...], kwargs: dict[str, Any]) -> Sequence[Tensor]:
        """Sequences to run on threads of their own on the CPU (see attlas.kernels.cpu.crew), of 256 tokens or more: where
        nothing but z is read, since the hooks of other names keep what one pass needs. Else the inputs as one chunk."""
        threads = self.device.type == "cpu" and not self.hf.training and not torch.is_autocast_enabled("cpu")
        alone = not kwargs and not self._engine.registrations and all(name.endswith("hook_z") for name in wanted)
        n_parts = min(16, inputs.shape[0], inputs.numel() // 256) if inputs.dim() == 2 else 1
        if not (threads and alone) or n_parts < 2 or crew() is None or has_hooks(uncompiled(self.hf)):
            return (inputs,)
        return self._check(inputs).tensor_split(n_parts)

    # -- text ------------------------------------------------------------------------------------------------------

    def to_tokens(self, text: str | list[str], prepend_bos: bool | None = None) -> Tensor:
        """Token ids int64 [B, T]; a list must tokenise to equal lengths (pad yourself otherwise).
        They begin with one BOS (`prepend_bos` None: as attlas.data.tokenizing.bos_of says; True: any; False: none).

        Raises:
            PromptError: a text is empty, or there is none.
            ConfigError: the texts are of several lengths.
        """
        tokenizer = self.require_tokenizer("texts")
        texts = [text] if isinstance(text, str) else text
        if not texts or not all(texts):
            raise PromptError("the prompt is empty; give some text")
        rows = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        if prepend_bos is not False:
            rows = [begun(row, tokenizer.bos_token_id if prepend_bos else bos_of(tokenizer)) for row in rows]
        if len({len(row) for row in rows}) > 1:
            raise ConfigError(f"the texts have {sorted({len(r) for r in rows})} tokens; give texts of equal length")
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def to_str_tokens(self, ids: Tensor | list[int]) -> list[str]:
        """Each token as the text it stands for, see `attlas.interp.tokens.token_texts`."""
        return token_texts(self.require_tokenizer("texts"), ids.flatten().tolist() if isinstance(ids, Tensor) else ids)

    def cross_entropy(self, tokens: Tensor, logits: Tensor | None = None) -> Tensor:
        """Loss of each next token, nats, [B, T−1].

        Raises:
            UnsupportedModelError: a backbone, or a vision model.
        """
        self.require_language_model()
        tokens = tokens.to(self.device)
        logits = self(tokens) if logits is None else logits
        losses = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        return losses.view(tokens.shape[0], -1)

    def with_saes(self, saes: Mapping[str, Any], use_error_term: bool = True) -> contextlib.AbstractContextManager[Any]:
        """Splice autoencoders in: `with model.with_saes({hook: sae}): model(tokens)`; see attlas.interp.splice."""
        return splice(self, saes, use_error_term)

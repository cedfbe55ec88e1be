"""Runs hook functions at the right places of a forward pass, with torch hooks that exist only while wanted.

All functions of all open contexts are kept in one ordered list, and the torch hooks are made anew from it whenever a
context opens or closes. So an inner capture sees what an outer intervention wrote, on every name, and closing the last
context leaves the model without a single hook, exceptions included.

What a function was given is what the model goes on with: with gradients on, every tensor read is in the graph of the
output, those that SDPA and the fused norms do not hand out (patterns, scores, rotated queries, norm scales) too. Their
values are computed beside the fused kernel; its own result stays, bit for bit, and only the gradient takes the way
through the tensors read. A change, or dropout in training, makes the result anew from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp.fused import FusedQKV
from attlas.interp.names import POOL
from attlas.interp.structure import LayerModules, ModelStructure, linear_bias, linear_weight, norm_eps
from attlas.interp.vision.pooling import attention_of, pooled, pooling_attention
from attlas.interp.wrappers.compiled import Eager

HookFn = Callable[[Tensor, str], Tensor | None]
Registration = tuple[str, HookFn]

_DERIVED = ("hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern")


class StopForward(Exception):
    """Leaves a forward pass early; carries the residual stream at that point."""

    def __init__(self, residual: Tensor | None = None) -> None:
        self.residual = residual


class HookEngine:
    """The torch hooks of one model."""

    def __init__(self, structure: ModelStructure) -> None:
        self.structure = structure
        self.registrations: list[Registration] = []
        self._handles: list[Any] = []
        self._fns: dict[str, list[HookFn]] = {}
        self._eager = Eager()

    def add(self, registrations: list[Registration]) -> None:
        """Append functions and make the torch hooks anew."""
        self.registrations.extend(registrations)
        self._install()

    def remove(self, registrations: list[Registration]) -> None:
        """Take functions off again (by identity, so equal ones of another context stay)."""
        gone = {id(r) for r in registrations}
        self.registrations = [r for r in self.registrations if id(r) not in gone]
        self._install()

    # -- calling ---------------------------------------------------------------------------------------------------

    def _call(self, name: str, tensor: Tensor) -> tuple[Tensor, bool]:
        """The tensor after all functions on a name, and whether one changed it, by returning another or in place."""
        changed = False
        for fn in self._fns.get(name, ()):
            before = _version(tensor)
            result = fn(tensor, name)
            if result is None or result is tensor:
                changed |= before is None or _version(tensor) != before
                continue
            _check_result(name, result, tensor)
            tensor, changed = result.contiguous(), True  # modules may `view` their input, as GPT-2's Conv1D does
        return tensor, changed

    # -- installing ------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._fns = {}
        for name, fn in self.registrations:
            self._fns.setdefault(name, []).append(fn)
        self._eager.set(bool(self._fns))
        if not self._fns:
            return
        structure = self.structure
        self._on_output(structure.embed, "hook_embed")
        if structure.pos_embed is not None:
            self._on_output(structure.pos_embed, "hook_pos_embed")
        if structure.pre_norm is not None:
            self._on_norm(structure.pre_norm, "ln_pre.")
        for layer, parts in enumerate(structure.layers):
            self._install_layer(f"blocks.{layer}.", parts)
        self._on_norm(structure.final_norm, "ln_final.")
        if structure.pool is not None and POOL in self._fns:
            self._on_pool(attention_of(structure.pool))

    def _install_layer(self, prefix: str, parts: LayerModules) -> None:
        if not any(name.startswith(prefix) for name in self._fns):
            return
        self._on_input(parts.block, prefix + "hook_resid_pre")
        if parts.ln1 is not None:
            self._on_norm(parts.ln1, prefix + "ln1.")
        self._install_attention(prefix + "attn.", parts)
        self._on_output(parts.attn_out, prefix + "hook_attn_out")
        if parts.mid is not None:
            self._on_resid_mid(parts, prefix + "hook_resid_mid")
        if parts.ln2 is not None:
            self._on_norm(parts.ln2, prefix + "ln2.")
        if parts.down_proj is not None:
            self._on_input(parts.down_proj, prefix + "mlp.hook_post")
        self._on_output(parts.mlp_out, prefix + "hook_mlp_out")
        self._on_output(parts.block, prefix + "hook_resid_post")

    def _on_output(self, module: nn.Module, name: str) -> None:
        if name not in self._fns:
            return

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._call(name, output[0])[0], *output[1:])
            return self._call(name, output)[0]

        self._handles.append(module.register_forward_hook(hook))

    def _on_input(self, module: nn.Module, name: str) -> None:
        if name not in self._fns:
            return

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._call(name, args[0])[0], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._call(name, kwargs["hidden_states"])[0]}

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _on_resid_mid(self, parts: LayerModules, name: str) -> None:
        """resid_mid feeds the norm and, past it, the sum with the MLP: a change must reach both.

        The norm's input alone is not enough, so the change is also added to the MLP's output's partner: the block's
        output, since resid_post = resid_mid + mlp_out.
        """
        if name not in self._fns:
            return
        assert parts.mid is not None
        delta: list[Tensor] = []

        def before(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            changed = self._call(name, args[0])[0]
            delta.clear()
            if changed is not args[0]:
                delta.append(changed - args[0])
            return (changed, *args[1:])

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not delta:
                return None
            change = delta.pop()
            return (output[0] + change, *output[1:]) if isinstance(output, tuple) else output + change

        self._handles.append(parts.mid.register_forward_pre_hook(before))
        self._handles.append(parts.block.register_forward_hook(after))

    def _on_norm(self, module: nn.Module, prefix: str) -> None:
        if prefix + "hook_scale" in self._fns:
            self._on_scale(module, prefix + "hook_scale")
        self._on_output(module, prefix + "hook_normalized")

    def _on_scale(self, module: nn.Module, name: str) -> None:
        """The norm divides by what the functions left: (x − mean) / scale · weight + bias."""
        centre = self.structure.cfg.norm == "ln"
        state: list[tuple[Tensor, Tensor, bool]] = []

        def before(norm: Any, args: tuple[Any, ...]) -> None:
            x = _precise(args[0])
            x = x - x.mean(-1, keepdim=True) if centre else x
            scale, changed = self._call(name, (x.pow(2).mean(-1, keepdim=True) + norm_eps(norm)).sqrt())
            state[:] = [(x, scale, changed)] if changed or _in_graph(scale) else []

        def after(norm: Any, _args: Any, output: Tensor) -> Tensor | None:
            if not state:
                return None
            x, scale, changed = state.pop()
            anew = (x / scale).to(output.dtype)
            anew = anew if norm.weight is None else anew * (norm.weight + self.structure.gain_offset)
            bias: Any = getattr(norm, "bias", None)
            anew = anew if bias is None else anew + bias
            return anew if changed else _graph_through(output, anew)

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after))

    def _on_pool(self, module: nn.MultiheadAttention) -> None:
        """The pattern of a pooling head, made from its weights; a changed one makes what it draws anew."""

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            pattern, values = pooling_attention(module, args[0], args[1])
            pattern, changed = self._call(POOL, pattern)
            if not changed and not _in_graph(pattern):
                return None
            anew = pooled(module, pattern, values)
            return (anew if changed else _graph_through(output[0], anew), *output[1:])

        self._handles.append(module.register_forward_hook(hook))

    # -- attention -------------------------------------------------------------------------------------------------

    def _install_attention(self, prefix: str, parts: LayerModules) -> None:
        derived = [prefix + part for part in _DERIVED if prefix + part in self._fns]
        state: dict[str, Any] = {}
        for kind, module in (("q", parts.q), ("k", parts.k), ("v", parts.v)):
            if derived or f"{prefix}hook_{kind}" in self._fns:
                self._on_projection(prefix, kind, module, parts.fused, state)
        if derived:

            def receive(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                state["mask"] = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
                state["rope"] = kwargs.get("position_embeddings")

            # First in line: it must run before the projections inside.
            self._handles.append(parts.attn.register_forward_pre_hook(receive, with_kwargs=True))
        with_result = prefix + "hook_result" in self._fns
        if not derived and not with_result and prefix + "hook_z" not in self._fns:
            return
        heads, d_head = self.structure.cfg.n_heads, self.structure.cfg.d_head

        def before_out(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            flat = args[0]
            z = flat.reshape(*flat.shape[:-1], heads, d_head)
            anew = self._attend(prefix, parts, state, z) if derived else z
            new, changed = self._call(prefix + "hook_z", anew)
            state.clear()
            if with_result:
                state["result"] = self._result(prefix, parts, new)
            if not changed and anew is z and not _in_graph(new):
                return None
            return (new.reshape(flat.shape), *args[1:])

        self._handles.append(parts.out_proj.register_forward_pre_hook(before_out))
        if with_result:

            def after_out(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
                return self._sum_heads(parts, state.pop("result"), output)

            self._handles.append(parts.out_proj.register_forward_hook(after_out))

    def _result(self, prefix: str, parts: LayerModules, z: Tensor) -> tuple[Tensor, bool]:
        """What each head adds, z_h · W_O_h, [B, T, head, d_model]."""
        weight = linear_weight(parts.out_proj).reshape(*z.shape[-2:], -1)
        return self._call(prefix + "hook_result", torch.einsum("...he,hed->...hd", z, weight))

    def _sum_heads(self, parts: LayerModules, result: tuple[Tensor, bool], output: Tensor) -> Tensor | None:
        """The projection's output, anew from what the functions left of the heads' results."""
        of_heads, changed = result
        if not changed and not _in_graph(of_heads):
            return None
        anew = of_heads.sum(-2) + linear_bias(parts.out_proj, of_heads.shape[-1])
        return anew if changed else _graph_through(output, anew)

    def _on_projection(
        self, prefix: str, kind: str, module: nn.Module, fused: FusedQKV | None, state: dict[str, Any]
    ) -> None:
        name, d_head = f"{prefix}hook_{kind}", self.structure.cfg.d_head

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Any:
            part = output.unflatten(-1, (-1, d_head)) if fused is None else fused.take(output, kind)
            after, changed = self._call(name, part)
            state[kind] = after
            if not changed and not (name in self._fns and _in_graph(after)):
                return None
            return after.reshape(output.shape) if fused is None else fused.put(output, kind, after)

        self._handles.append(module.register_forward_hook(hook))

    def _attend(self, prefix: str, parts: LayerModules, state: dict[str, Any], z: Tensor) -> Tensor:
        """Scores and pattern as the module computes them, and z: its own, or anew from what the functions left.

        In training with attention dropout the mask that SDPA drew cannot be had: the pattern is dropped out here, and
        z made from it, so that z = pattern · v holds as in evaluation.
        """
        self._need_known_mask(parts, state["mask"])
        q, k = state["q"], state["k"]
        if parts.qk_norm is not None:
            q, k = parts.qk_norm(q, k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # [B, head, T, d_head]
        changed = False
        if self.structure.rotary is not None:
            q, k = self.structure.rotary(q, k, state["rope"])
            q, q_changed = self._call(prefix + "hook_rot_q", q.transpose(1, 2))
            k, k_changed = self._call(prefix + "hook_rot_k", k.transpose(1, 2))
            q, k, changed = q.transpose(1, 2), k.transpose(1, 2), q_changed or k_changed
        graph = _in_graph(q) or _in_graph(k)
        maps = prefix + "hook_attn_scores" in self._fns or prefix + "hook_pattern" in self._fns
        if not (changed or graph or maps):
            return z
        group = q.shape[1] // k.shape[1]
        v = state["v"].transpose(1, 2).repeat_interleave(group, 1)
        k = k.repeat_interleave(group, 1)
        dropout = parts.attn_dropout if parts.attn.training else 0.0
        if maps or parts.rule.softcap is not None or parts.rule.sinks is not None:
            logits = parts.rule.capped(q @ k.transpose(-1, -2) * parts.scale)
            scores, scores_changed = self._call(
                prefix + "hook_attn_scores", mask_scores(logits, state["mask"], self.causal)
            )
            soft = nn.functional.dropout(softmax_rows(scores, parts.rule.sinks).to(q.dtype), dropout)
            pattern, pattern_changed = self._call(prefix + "hook_pattern", soft)
            changed |= scores_changed or pattern_changed or dropout > 0
            if not (changed or _in_graph(pattern)):
                return z
            anew = pattern @ v
        else:  # no T × T matrix for the sake of a gradient
            mask, causal = state["mask"], self.causal and state["mask"] is None and q.shape[2] > 1
            anew = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=parts.scale)
            changed |= dropout > 0
        anew = anew.transpose(1, 2)
        return anew if changed else _graph_through(z, anew)

    def _need_known_mask(self, parts: LayerModules, mask: Tensor | None) -> None:
        kind = getattr(getattr(parts.attn, "config", None), "_attn_implementation", "sdpa")
        if kind not in ("sdpa", "eager") or (mask is not None and mask.ndim != 4):
            raise UnsupportedModelError(
                f"attention implementation '{kind}' does not hand out its mask, so patterns cannot be had; "
                "call hf.set_attn_implementation('sdpa')"
            )

    @property
    def causal(self) -> bool:
        return self.structure.cfg.causal


def _version(tensor: Tensor) -> int | None:
    """Counts the changes made in place; None for tensors of inference mode, which do not count."""
    return None if tensor.is_inference() else tensor._version


def _precise(tensor: Tensor) -> Tensor:
    """In float32, or as it is in float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _in_graph(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def _graph_through(value: Tensor, other: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `other`, which is equal up to rounding."""
    return value.detach() + (other - other.detach())


def _check_result(name: str, result: Any, tensor: Tensor) -> None:
    if not isinstance(result, Tensor):
        raise ConfigError(f"the function on {name} returned {type(result).__name__}, not a tensor or None")
    if result.shape != tensor.shape:
        raise ConfigError(f"the function on {name} returned shape {tuple(result.shape)}, not {tuple(tensor.shape)}")
    if result.dtype != tensor.dtype or result.device != tensor.device:
        raise ConfigError(
            f"the function on {name} returned {result.dtype} on {result.device}, not {tensor.dtype} on {tensor.device}"
        )


def mask_scores(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scores [B, head, dest, src] with −inf where attention is not allowed.

    `mask` is what the attention module received: None (then causal models mask the future), boolean (True = may attend)
    or additive.
    """
    if mask is None:
        if not causal:
            return scores
        dest, src = scores.shape[-2:]
        allowed = torch.ones(dest, src, dtype=torch.bool, device=scores.device).tril(src - dest)
        return scores.masked_fill(~allowed, -torch.inf)
    mask = mask[..., : scores.shape[-1]]
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return torch.where(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf, scores + mask)


def softmax_rows(scores: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax in float32 or better; a row with nothing to attend to becomes zeros, not NaN.

    `sinks` [head]: a logit beside those of the keys, whose mass is left out, so that rows sum to less than 1.
    """
    scores = _precise(scores)
    if sinks is None:
        return torch.softmax(scores, dim=-1).nan_to_num(0.0)
    beside = sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, beside], dim=-1), dim=-1)[..., :-1]

"""Runs hook functions at the right places of a forward pass, with torch hooks that exist only while wanted.

All functions of all open contexts are kept in one ordered list, and the torch hooks are made anew from it whenever a
context opens or closes. So an inner capture sees what an outer intervention wrote, on every name, and closing the last
context leaves the model without a single hook, exceptions included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import ConfigError
from attlas.interp.anatomy import Anatomy, LayerParts

HookFn = Callable[[Tensor, str], Tensor | None]
Registration = tuple[str, HookFn]

_DERIVED = ("hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern")


class StopForward(Exception):
    """Leaves a forward pass early; carries the residual stream at that point."""

    def __init__(self, residual: Tensor | None = None) -> None:
        self.residual = residual


class HookEngine:
    """The torch hooks of one model."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.registrations: list[Registration] = []
        self._handles: list[Any] = []
        self._fns: dict[str, list[HookFn]] = {}

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

    def _call(self, name: str, tensor: Tensor) -> Tensor:
        for fn in self._fns.get(name, ()):
            result = fn(tensor, name)
            if result is not None:
                if result.shape != tensor.shape:
                    raise ConfigError(
                        f"the function on {name} returned shape {tuple(result.shape)}, not {tuple(tensor.shape)}"
                    )
                tensor = result
        return tensor

    # -- installing ------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._fns = {}
        for name, fn in self.registrations:
            self._fns.setdefault(name, []).append(fn)
        if not self._fns:
            return
        anatomy = self.anatomy
        self._on_output(anatomy.embed, "hook_embed")
        if anatomy.pos_embed is not None:
            self._on_output(anatomy.pos_embed, "hook_pos_embed")
        for layer, parts in enumerate(anatomy.layers):
            self._install_layer(f"blocks.{layer}.", parts)
        self._on_norm(anatomy.final_norm, "ln_final.")

    def _install_layer(self, prefix: str, parts: LayerParts) -> None:
        if not any(name.startswith(prefix) for name in self._fns):
            return
        self._on_input(parts.block, prefix + "hook_resid_pre")
        self._on_norm(parts.ln1, prefix + "ln1.")
        self._install_attention(prefix + "attn.", parts)
        self._on_output(parts.attn_out, prefix + "hook_attn_out")
        self._on_input(parts.ln2, prefix + "hook_resid_mid")
        self._on_norm(parts.ln2, prefix + "ln2.")
        self._on_output(parts.mlp_out, prefix + "hook_mlp_out")
        self._on_output(parts.block, prefix + "hook_resid_post")

    def _on_output(self, module: nn.Module, name: str) -> None:
        if name not in self._fns:
            return

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._call(name, output[0]), *output[1:])
            return self._call(name, output)

        self._handles.append(module.register_forward_hook(hook))

    def _on_input(self, module: nn.Module, name: str) -> None:
        if name not in self._fns:
            return

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._call(name, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._call(name, kwargs["hidden_states"])}

        if name.endswith("hook_resid_mid"):
            self._on_resid_mid(module, name)
            return
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _on_resid_mid(self, ln2: nn.Module, name: str) -> None:
        """resid_mid feeds the norm and, past it, the sum with the MLP: a change must reach both.

        The norm's input alone is not enough, so the change is also added to the MLP's output's partner: the block's
        output, since resid_post = resid_mid + mlp_out.
        """
        layer = int(name.split(".")[1])
        block = self.anatomy.layers[layer].block
        delta: list[Tensor] = []

        def before(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            changed = self._call(name, args[0])
            delta.clear()
            if changed is not args[0]:
                delta.append(changed - args[0])
            return (changed, *args[1:])

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not delta:
                return None
            change = delta.pop()
            return (output[0] + change, *output[1:]) if isinstance(output, tuple) else output + change

        self._handles.append(ln2.register_forward_pre_hook(before))
        self._handles.append(block.register_forward_hook(after))

    def _on_norm(self, module: nn.Module, prefix: str) -> None:
        scale_name = prefix + "hook_scale"
        if scale_name in self._fns:
            centre = self.anatomy.cfg.norm == "ln"

            def scale(norm: nn.Module, args: tuple[Any, ...]) -> None:
                x = args[0].float()
                x = x - x.mean(-1, keepdim=True) if centre else x
                eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0.0)
                value = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
                if self._call(scale_name, value) is not value:
                    raise ConfigError(f"'{scale_name}' can be read, not changed; change '{prefix}hook_normalized'")

            self._handles.append(module.register_forward_pre_hook(scale))
        self._on_output(module, prefix + "hook_normalized")

    # -- attention -------------------------------------------------------------------------------------------------

    def _install_attention(self, prefix: str, parts: LayerParts) -> None:
        derived = [prefix + part for part in _DERIVED if prefix + part in self._fns]
        state: dict[str, Any] = {}
        for kind, module in (("q", parts.q), ("k", parts.k), ("v", parts.v)):
            if derived or f"{prefix}hook_{kind}" in self._fns:
                self._on_projection(prefix, kind, module, parts.fused_qkv, state)
        if derived:

            def receive(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                state["mask"] = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
                state["rope"] = kwargs.get("position_embeddings")

            # First in line: it must run before the projections inside.
            self._handles.append(parts.attn.register_forward_pre_hook(receive, with_kwargs=True))
        if not derived and prefix + "hook_z" not in self._fns:
            return
        heads, d_head = self.anatomy.cfg.n_heads, self.anatomy.cfg.d_head

        def before_out(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            flat = args[0]
            z = flat.view(*flat.shape[:-1], heads, d_head)
            new = self._attend(prefix, parts, state, z) if derived else z
            new = self._call(prefix + "hook_z", new)
            state.clear()
            return None if new is z else (new.reshape(flat.shape), *args[1:])

        self._handles.append(parts.out_proj.register_forward_pre_hook(before_out))

    def _on_projection(self, prefix: str, kind: str, module: nn.Module, fused: bool, state: dict[str, Any]) -> None:
        cfg = self.anatomy.cfg
        heads = cfg.n_heads if kind == "q" else cfg.n_kv_heads
        name = f"{prefix}hook_{kind}"
        slot = "qkv".index(kind)

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Any:
            part = output.chunk(3, dim=-1)[slot] if fused else output
            before = part.reshape(*part.shape[:-1], heads, cfg.d_head)
            after = self._call(name, before)
            state[kind] = after
            if after is before:
                return None
            if not fused:
                return after.reshape(output.shape)
            pieces = list(output.chunk(3, dim=-1))
            pieces[slot] = after.reshape(part.shape)
            return torch.cat(pieces, dim=-1)

        self._handles.append(module.register_forward_hook(hook))

    def _attend(self, prefix: str, parts: LayerParts, state: dict[str, Any], z: Tensor) -> Tensor:
        """Scores and pattern as the module computes them; z anew when a function changed something on the way."""
        q, k = state["q"].transpose(1, 2), state["k"].transpose(1, 2)  # [B, head, T, d_head]
        changed = False
        if self.anatomy.rotary is not None:
            q, k = self.anatomy.rotary(q, k, state["rope"])
            new_q = self._call(prefix + "hook_rot_q", q.transpose(1, 2)).transpose(1, 2)
            new_k = self._call(prefix + "hook_rot_k", k.transpose(1, 2)).transpose(1, 2)
            changed = not (_same(new_q, q) and _same(new_k, k))
            q, k = new_q, new_k
        if not changed and not (prefix + "hook_attn_scores" in self._fns or prefix + "hook_pattern" in self._fns):
            return z
        group = q.shape[1] // k.shape[1]
        raw = mask_scores(q @ k.repeat_interleave(group, 1).transpose(-1, -2) * parts.scale, state["mask"], self.causal)
        scores = self._call(prefix + "hook_attn_scores", raw)
        soft = softmax_rows(scores).to(q.dtype)
        pattern = self._call(prefix + "hook_pattern", soft)
        if not changed and scores is raw and pattern is soft:
            return z
        v = state["v"].transpose(1, 2).repeat_interleave(group, 1)
        return (pattern @ v).transpose(1, 2)

    @property
    def causal(self) -> bool:
        return self.anatomy.cfg.causal


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr()


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


def softmax_rows(scores: Tensor) -> Tensor:
    """Softmax in float32; a row with nothing to attend to becomes zeros, not NaN."""
    return torch.softmax(scores.float(), dim=-1).nan_to_num(0.0)

"""Every hook of every text family against what transformers' own eager attention is given and gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.interp import HookedModel, load_model
from tests.interp.tiny_families import TINY, recording, tiny

TOLERANCE = 1e-4
LENGTH = 24
Table = pytest.mark.parametrize("name", TINY)


def _open(hf: Any) -> HookedModel:
    """As `load_model` opens folders: with SDPA where the class has it."""
    hf = copy.deepcopy(hf)
    hf.config._attn_implementation = "sdpa" if hf._supports_sdpa else "eager"
    return load_model(hf)


def _tokens(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(3))


def _padding(side: str) -> Tensor:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    if side == "left":
        mask[0, :5] = 0
    if side == "right":
        mask[1, -7:] = 0
    return mask


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _close(ours: Tensor, theirs: Tensor, what: str, real: Tensor | None = None) -> None:
    """Equal to TOLERANCE, at real tokens [B, T] of [B, T, …] alone."""
    assert ours.shape == theirs.shape, what
    if real is not None:
        ours, theirs = ours[real], theirs[real]
    gap = float((ours.float() - theirs.float()).abs().max())
    assert gap <= TOLERANCE, f"{what}: {gap:.2g}"


def _scores(seen: dict[str, Any]) -> Tensor:
    """Scores before the softmax in float64, from what the module's attention function was given."""
    q, k = seen["q"].double(), seen["k"].double()
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * seen["scaling"]
    cap = seen.get("softcap")
    return logits if cap is None else cap * torch.tanh(logits / cap)


@Table
@pytest.mark.parametrize("side", ["none", "left", "right"])
@torch.no_grad()
def test_hooks_equal_eager(name: str, side: str) -> None:
    mask, tokens = _padding(side), _tokens()
    reference = copy.deepcopy(tiny(name))
    seen = recording(reference)
    given = {} if side == "none" else {"attention_mask": mask, "position_ids": _positions(mask)}
    theirs = reference(tokens, output_hidden_states=True, use_cache=False, **given)
    model = _open(tiny(name))
    logits, cache = model.run_with_cache(
        tokens, lambda _name: True, **({} if side == "none" else {"attention_mask": mask})
    )
    real = mask.bool()
    _close(logits, theirs.logits, "logits", real)
    for layer, recorded in enumerate(seen):
        at, rotary = f"blocks.{layer}.", model.cfg.positional == "rotary"
        kinds = {"q": "rot_q", "k": "rot_k", "v": "v"} if rotary else {"q": "q", "k": "k", "v": "v"}
        for part, hook in kinds.items():
            _close(cache[f"{at}attn.hook_{hook}"], recorded[part].transpose(1, 2), f"{at}{hook}", real)
        _close(cache[at + "attn.hook_z"], recorded["z"], at + "z", real)
        ours = {part: cache[f"{at}attn.hook_{part}"].transpose(1, 2) for part in ("pattern", "attn_scores")}
        _close(ours["pattern"], recorded["pattern"].transpose(1, 2), at + "pattern", real)
        allowed = recorded["mask"].transpose(1, 2).expand_as(ours["pattern"]) > -1e30
        assert torch.equal(allowed[real], torch.isfinite(ours["attn_scores"])[real]), at
        scores = _scores(recorded).transpose(1, 2)
        _close(ours["attn_scores"].masked_fill(~allowed, 0), scores.masked_fill(~allowed, 0), at + "scores", real)
        before, after = cache[at + "hook_resid_pre"], cache[at + "hook_resid_post"]
        _close(before, theirs.hidden_states[layer], at + "resid_pre", real)
        added = cache[at + "hook_attn_out"] + cache[at + "hook_mlp_out"]
        _close(before + added, after, at + "sum of the parts", real)
        if at + "hook_resid_mid" in cache:
            _close(before + cache[at + "hook_attn_out"], cache[at + "hook_resid_mid"], at + "resid_mid", real)


@Table
@torch.no_grad()
def test_weights_make_the_hooks(name: str) -> None:
    """The attention module's input through W_Q, W_K, W_V is q, k, v, and z through W_O is its output."""
    model = _open(tiny(name))
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for layer, parts in enumerate(model.layers):

        def keep(_module: Any, args: Any, kwargs: Any, output: Any, layer: int = layer) -> None:
            seen[layer] = (args[0] if args else kwargs["hidden_states"], output[0])

        parts.attn.register_forward_hook(keep, with_kwargs=True)
    _, cache = model.run_with_cache(_tokens(), lambda _name: True)
    for layer, (x, output) in seen.items():
        for kind in "qkv":
            weight, bias = (getattr(model, f"{w}_{kind.upper()}")(layer) for w in "Wb")
            made = torch.einsum("btd,hde->bthe", x, weight) + bias
            _close(made, cache[f"blocks.{layer}.attn.hook_{kind}"], kind)
        result = cache[f"blocks.{layer}.attn.hook_result"].sum(2) + model.b_O(layer)
        _close(result, output, "W_O")


def _cases(model: HookedModel) -> Iterator[str]:
    for part in ("pattern", "attn_scores", "rot_q", "rot_k", "q", "k", "v", "z", "result"):
        if f"blocks.0.attn.hook_{part}" in model.hook_names():
            yield f"blocks.0.attn.hook_{part}"


@Table
@torch.no_grad()
def test_a_hook_that_writes_what_it_read_changes_nothing(name: str) -> None:
    """Attention made anew from each hook's tensor is the module's own, and another tensor makes another output."""
    model, tokens = _open(tiny(name)), _tokens()
    clean = model(tokens)
    for hook in _cases(model):
        with model.hooks({hook: lambda tensor, _name: tensor.clone()}):
            _close(model(tokens), clean, hook)
        with model.hooks({hook: lambda tensor, _name: tensor.roll(1, 0)}):  # the other sequence's
            assert (model(tokens) - clean).abs().max() > 1e-2, hook


@Table
@torch.no_grad()
def test_edits_reach_one_head_alone(name: str) -> None:
    model, tokens = _open(tiny(name)), _tokens()

    def silence(tensor: Tensor, _name: str) -> Tensor:
        tensor = tensor.clone()
        tensor[:, :, 0] = 0
        return tensor

    group = model.cfg.n_heads // model.cfg.n_kv_heads
    wanted = ["blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern"]
    clean = model.run_with_cache(tokens, wanted)[1]
    with model.hooks({"blocks.0.attn.hook_v": silence}):
        cache = model.run_with_cache(tokens, wanted)[1]
    z, pattern = (cache[hook] for hook in wanted)
    assert not z[:, :, :group].any()
    if group < model.cfg.n_heads:
        _close(z[:, :, group:], clean[wanted[0]][:, :, group:], "z of other heads")
    _close(pattern, clean[wanted[1]], "pattern")
    with model.hooks({"blocks.0.attn.hook_q": silence}):
        changed = (model.run_with_cache(tokens, wanted)[1][wanted[1]] - clean[wanted[1]]).abs().amax((0, 2, 3))
    if "qk_norm" not in model.cfg.traits:  # OLMo 2 norms over all heads
        assert changed[0] > 1e-2
        assert not (changed[1:] > TOLERANCE).any()


@Table
@torch.no_grad()
def test_norm_scales_divide(name: str) -> None:
    """Twice the scale halves what the norm gives, bias aside; at the residual's middle an edit reaches norm and sum."""
    hf, tokens = tiny(name), _tokens()
    model = _open(hf)
    hooks = [h for h in model.hook_names() if h.endswith("hook_scale") and not h.startswith("blocks.1")]
    for hook in hooks:
        with model.hooks({hook: lambda scale, _name: 2 * scale}):
            found = model(tokens)
        parts = model.layers[0]
        module = model.final_norm if hook.startswith("ln_final") else parts.ln1 if ".ln1." in hook else parts.ln2
        assert module is not None

        def halve(norm: Any, _args: Any, out: Tensor) -> Tensor:
            bias = getattr(norm, "bias", None)
            return out / 2 if bias is None else (out - bias) / 2 + bias

        handle = module.register_forward_hook(halve)
        _close(model(tokens), found, hook)
        handle.remove()
    if "blocks.0.hook_resid_mid" in model.hook_names():
        shift = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(1))
        outputs = []
        for part in ("hook_resid_mid", "hook_attn_out"):
            with model.hooks({f"blocks.0.{part}": lambda tensor, _name: tensor + shift}):
                outputs.append(model(tokens))
        _close(*outputs, "resid_mid")


@Table
@torch.no_grad()
def test_bfloat16_within_its_rounding(name: str) -> None:
    """Rotated queries and keys bit for bit, patterns to one part in 64, against transformers in bfloat16."""
    reference = TINY[name].make(torch.bfloat16)
    model, tokens = _open(reference), _tokens()
    seen = recording(reference)
    reference(tokens, use_cache=False)
    _, cache = model.run_with_cache(tokens, ["blocks.0.*"])
    pattern = model.run_with_cache(tokens, ["blocks.0.attn.hook_pattern"])[1]["blocks.0.attn.hook_pattern"]
    for part in "qk":
        torch.testing.assert_close(
            cache[f"blocks.0.attn.hook_rot_{part}"], seen[0][part].transpose(1, 2), atol=0, rtol=0
        )
    assert (pattern.float() - seen[0]["pattern"].float()).abs().max() < 1 / 64


@Table
@torch.no_grad()
def test_a_folder_opens_as_the_module(name: str, tmp_path: Any) -> None:
    hf, tokens = tiny(name), _tokens()
    hf.save_pretrained(tmp_path / "whole")
    hf.base_model.save_pretrained(tmp_path / "backbone")
    whole, backbone = (load_model(tmp_path / part, device="cpu") for part in ("whole", "backbone"))
    _close(whole(tokens), hf(tokens).logits, "logits")
    _close(backbone(tokens), hf.base_model(tokens).last_hidden_state, "hidden state")
    assert whole.has_head
    assert not backbone.has_head


@pytest.mark.parametrize("name", ["neox", "gemma3", "gptj"])
@torch.no_grad()
def test_hooks_equal_transformer_bridge(name: str, tmp_path: Any) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tiny(name).save_pretrained(tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR / "gpt2-mini")  # any will do
    folder = str(tmp_path / name)
    bridge = TransformerBridge.boot_transformers(folder, tokenizer=tokenizer, device="cpu", dtype=torch.float32)
    _, theirs = bridge.run_with_cache(_tokens())
    _, ours = load_model(folder, device="cpu").run_with_cache(_tokens(), lambda _name: True)
    compared = set()
    for hook, value in ours.items():
        if hook not in theirs or theirs[hook].shape != value.shape or hook.endswith("hook_normalized"):
            continue  # normalized: with the norm's weights here, without there
        if name == "gptj" and hook.endswith("attn_scores"):
            continue  # the bridge of GPT-J has the pattern there
        allowed = torch.isfinite(value) & (theirs[hook] > -1e4)
        assert (value - theirs[hook])[allowed].abs().max() <= TOLERANCE, hook
        compared.add(hook.removeprefix("blocks.1."))
    needed = {"hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "mlp.hook_post"}
    needed |= {f"attn.hook_{part}" for part in ("q", "k", "v", "z", "pattern", "attn_scores")}
    assert needed - ({"attn.hook_attn_scores"} if name == "gptj" else set()) <= compared

"""Every cached tensor is in the graph of the output, with TransformerLens's gradient; reading changes no bit of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.interp import HookedModel, load_model


def _loss(logits: Tensor) -> Tensor:
    return logits[:, -1].log_softmax(-1)[:, 7].sum()


def _everything(_name: str) -> bool:
    return True


@pytest.mark.parametrize("kind", ["gpt2-mini", "tiny-llama"])
def test_gradients_of_cached_tensors_equal_transformer_bridge(kind: str, tiny_llama_dir: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    folder = tiny_llama_dir if kind == "tiny-llama" else EMBEDDED_DIR / kind
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR / "gpt2-mini")
    bridge = TransformerBridge.boot_transformers(str(folder), tokenizer=tokenizer, device="cpu", dtype=torch.float32)
    bridge.set_use_attn_result(True)
    model = load_model(folder, device="cpu")
    tokens = torch.randint(1, 100, (2, 11))
    logits, cache = model.run_with_cache(tokens, _everything)
    assert torch.equal(logits, model(tokens))
    ours = dict(zip(cache, torch.autograd.grad(_loss(logits), list(cache.values())), strict=True))

    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        # A copy, given back: the bridge does not go on with the views of q, k, v and z that it hands out.
        copied = name.rsplit("_", 1)[-1] in "qkvz"
        return lambda t, hook: kept.setdefault(name, t.clone() if copied else t)

    hooks = [(n, keep(n)) for n in cache if n != "hook_pos_embed" and "rot" not in n]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs_logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    found = torch.autograd.grad(_loss(theirs_logits), list(kept.values()), allow_unused=True)
    theirs = {name: gradient for name, gradient in zip(kept, found, strict=True) if gradient is not None}
    assert {f"blocks.2.attn.hook_{x}" for x in ("q", "k", "v", "z", "result", "pattern", "attn_scores")} <= set(theirs)
    assert "blocks.2.mlp.hook_post" in theirs
    for name, gradient in theirs.items():
        if name.endswith("hook_normalized"):  # with the norm's weights here, without in the bridge
            norm = {"ln1": model.ln1, "ln2": model.ln2}.get(name.split(".")[-2])
            weight = (norm(int(name.split(".")[1])) if norm else model.final_norm).weight
            gradient = gradient / weight
        scale = gradient.abs().max().item()
        torch.testing.assert_close(ours[name], gradient, atol=2e-5 * scale, rtol=0, msg=name)


def test_rotated_queries_have_the_gradient_of_finite_differences(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir, device="cpu", dtype="float64")
    tokens, name = torch.randint(1, 100, (1, 7)), "blocks.1.attn.hook_rot_k"
    logits, cache = model.run_with_cache(tokens)  # without patterns: SDPA, no T × T matrix
    (gradient,) = torch.autograd.grad(_loss(logits), [cache[name]])
    direction = torch.randn_like(gradient)
    with torch.no_grad():
        ends = []
        for step in (1e-3, -1e-3):
            with model.hooks({name: lambda t, n, step=step: t + step * direction}):
                ends.append(_loss(model(tokens)))
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-3, rel=1e-3)


def test_vision_models_have_gradients_at_every_hook(vit_mini: HookedModel) -> None:
    pixels = torch.randn(2, 1, *vit_mini.cfg.image_size)
    logits, cache = vit_mini.run_with_cache(pixels, _everything)
    assert torch.equal(logits, vit_mini(pixels))
    for name, gradient in zip(cache, torch.autograd.grad(logits[:, 0].sum(), list(cache.values())), strict=True):
        assert gradient.abs().max() > 0, name


def test_a_read_tensor_made_to_require_grad_is_in_the_graph(tiny_llama_dir: Path) -> None:
    """With frozen parameters a hook may call requires_grad_() on what it reads."""
    model = load_model(tiny_llama_dir, device="cpu")
    model.hf.requires_grad_(False)
    for name in ("attn.hook_z", "attn.hook_q", "attn.hook_pattern", "ln1.hook_scale"):
        kept: list[Tensor] = []
        with model.hooks({f"blocks.1.{name}": lambda t, n, kept=kept: kept.append(t.requires_grad_())}):
            _loss(model(torch.randint(1, 100, (1, 6)))).backward()
        assert kept[0].grad is not None, name
        assert kept[0].grad.abs().max() > 0, name

"""Edits of every kind reach the output: views, in place, not contiguous; compiled modules; training mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model


def _tokens(model: HookedModel, n: int = 9) -> Tensor:
    return torch.randint(1, model.cfg.d_vocab, (2, n))


def _first_everywhere(t: Tensor, _name: str) -> Tensor:
    return t[:1].expand_as(t)  # the same storage, the same first element


def _in_place(t: Tensor, _name: str) -> None:
    t[1] = t[0]


def _in_place_returned(t: Tensor, _name: str) -> Tensor:
    t[1] = t[0]
    return t


@pytest.mark.parametrize("edit", [_first_everywhere, _in_place, _in_place_returned])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_views_and_changes_in_place_do_what_a_copy_does(
    gpt2_mini: HookedModel, tiny_llama: HookedModel, edit: Callable[..., Any], mode: Any
) -> None:
    for model in (gpt2_mini, tiny_llama):
        tokens = _tokens(model)
        with mode():
            clean = model(tokens)
            for name in (n for n in model.hook_names() if n.startswith("blocks.1.") or "block" not in n):
                if name == "hook_pos_embed":
                    continue
                with model.hooks({name: lambda t, n: t[:1].repeat(2, *[1] * (t.ndim - 1))}):
                    expected = model(tokens)
                assert not torch.allclose(expected, clean, atol=1e-4), name
                with model.hooks({name: edit}):
                    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5, msg=name)


def test_edits_that_are_not_contiguous(gpt2_mini: HookedModel, tiny_llama: HookedModel) -> None:
    for model in (gpt2_mini, tiny_llama):
        tokens = _tokens(model)
        clean = model(tokens)
        for name in model.hook_names():
            with model.hooks({name: lambda t, n: t.clone().transpose(0, -1).contiguous().transpose(0, -1)}):
                torch.testing.assert_close(model(tokens), clean, atol=1e-4, rtol=1e-4, msg=name)


def test_a_changed_scale_divides(tiny_llama: HookedModel) -> None:
    tokens, at = _tokens(tiny_llama), "blocks.1.ln2."
    _, clean = tiny_llama.run_with_cache(tokens, at + "hook_normalized")
    with tiny_llama.hooks({at + "hook_scale": lambda t, n: 2 * t}):
        _, half = tiny_llama.run_with_cache(tokens, at + "hook_normalized")
    torch.testing.assert_close(half[at + "hook_normalized"], clean[at + "hook_normalized"] / 2, atol=1e-6, rtol=1e-5)


def test_what_a_function_may_not_return(tiny_llama: HookedModel) -> None:
    name = "blocks.1.attn.hook_z"
    for wrong, said in ((lambda t, n: t.double(), "returned torch.float64"), (lambda t, n: 0.0, "returned float")):
        with pytest.raises(ConfigError, match=said), tiny_llama.hooks({name: wrong}):
            tiny_llama(_tokens(tiny_llama))


@pytest.mark.parametrize("part", ["whole", "block"])
def test_hooks_on_compiled_modules(tiny_llama_dir: Path, part: str) -> None:
    """Compiled code checks no hooks: whatever was compiled runs as it is while hooks are open, and compiled after."""
    model = load_model(tiny_llama_dir, device="cpu")
    tokens, name, weight_hash = _tokens(model), "blocks.1.attn.hook_z", load_model(model.hf).weight_hash
    with torch.no_grad():
        expected = model.capture(tokens, name)[name]
        with model.hooks({name: lambda t, n: t * 0}):
            ablated = model(tokens)
        calls: list[int] = []

        def backend(graph: Any, _examples: Any) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                calls.append(1)
                return graph(*args)

            return run

        hf: Any = model.hf
        if part == "whole":
            hf = torch.compile(hf, backend=backend)
        else:
            hf.model.layers[1].compile(backend=backend)
        model = load_model(hf)
        assert model.weight_hash == weight_hash
        clean = model(tokens)
        n_calls = len(calls)
        assert n_calls > 0
        for _ in range(2):
            with model.hooks({name: lambda t, n: t * 0}):
                torch.testing.assert_close(model(tokens), ablated, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model.capture(tokens, name)[name], expected, atol=1e-5, rtol=1e-5)
            residual, _ = model.run_with_cache(tokens, [], stop_at_layer=1)
            assert residual.shape[-1] == model.cfg.d_model
        assert len(calls) == n_calls
        torch.testing.assert_close(model(tokens), clean, atol=1e-5, rtol=1e-5)
        assert len(calls) > n_calls


def test_unknown_arguments_are_refused(gpt2_mini: HookedModel, vit_mini: HookedModel) -> None:
    tokens = _tokens(gpt2_mini)
    for name, said in (
        ("incl_bwd", "in the graph"),
        ("pos_slice", "slice the cached"),
        ("names_filter", "called names"),
        ("past_key_values", "without a key-value cache"),
        ("atention_mask", "did you mean 'attention_mask'"),
    ):
        with pytest.raises(ConfigError, match=f"'{name}'.*{said}"):
            gpt2_mini.run_with_cache(tokens, "*hook_z", **{name: True})
        with pytest.raises(ConfigError, match=f"'{name}'"):
            gpt2_mini.capture(tokens, "*hook_z", **{name: True})
    with pytest.raises(ConfigError, match="unknown argument 'position_ids'"):
        vit_mini(torch.randn(1, 1, *vit_mini.cfg.image_size), position_ids=tokens)
    with pytest.raises(ConfigError, match="images of 1 channels, not 3"):
        vit_mini(torch.randn(1, 3, *vit_mini.cfg.image_size))


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_training_patterns_are_the_dropped_out_ones(family: str) -> None:
    import transformers as tf

    torch.manual_seed(0)
    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "gpt2":
        config: Any = tf.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=2, n_positions=32, attn_pdrop=0.4)
        hf: Any = tf.GPT2LMHeadModel(config)
    elif family == "llama":
        config = tf.LlamaConfig(vocab_size=50, intermediate_size=24, attention_dropout=0.4, **common)
        hf = tf.LlamaForCausalLM(config)
    else:
        config = tf.ViTConfig(
            intermediate_size=24, image_size=16, patch_size=4, attention_probs_dropout_prob=0.4, **common
        )
        hf = tf.ViTForImageClassification(config)
    inputs = torch.randn(2, 3, 16, 16) if family == "vit" else torch.randint(0, 50, (2, 20))
    model = load_model(hf.eval())
    names = [f"blocks.1.attn.hook_{x}" for x in ("pattern", "z", "v")]
    hf.train()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            _, cache = model.run_with_cache(inputs, names)
        pattern, z, v = (cache[n] for n in names)
        torch.testing.assert_close(torch.einsum("bhqk,bkhe->bqhe", pattern, v), z, atol=1e-5, rtol=1e-4)
        allowed = torch.ones(pattern.shape[-2:], dtype=torch.bool)
        dropped = (pattern == 0)[..., allowed if family == "vit" else allowed.tril()].float().mean()
        assert 0.3 < float(dropped) < 0.5
    hf.eval()
    assert float(model.capture(inputs, names[0])[names[0]].sum(-1).min()) == pytest.approx(1, abs=1e-5)


def test_attention_without_a_mask_to_read_is_refused(tiny_llama_dir: Path) -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("house_attention", sdpa_attention_forward)
    model = load_model(tiny_llama_dir, device="cpu")
    model.hf.set_attn_implementation("house_attention")
    with pytest.raises(UnsupportedModelError, match="house_attention"):
        model.capture(_tokens(model), "*hook_pattern")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_left_padded_rows_equal_unpadded_ones(gpt2_mini: HookedModel, tiny_llama: HookedModel, family: str) -> None:
    """As `generate` pads: positions count from the first token."""
    model = gpt2_mini if family == "gpt2" else tiny_llama
    rows = [torch.randint(1, 100, (n,)) for n in (12, 7, 1)]
    tokens = torch.stack([torch.nn.functional.pad(row, (12 - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (12 - len(row), 0)) for row in rows])
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, ["*hook_resid_post", "*hook_pattern"], attention_mask=mask)
        for i, row in enumerate(rows):
            alone, own = model.run_with_cache(row[None], ["*hook_resid_post", "*hook_pattern"])
            torch.testing.assert_close(logits[i, -len(row) :], alone[0], atol=1e-4, rtol=1e-4)
            for name, value in own.items():
                there = cache[name][i, ..., -len(row) :, :]
                there = there[..., -len(row) :] if name.endswith("pattern") else there
                torch.testing.assert_close(there, value[0], atol=1e-4, rtol=1e-4)
        theirs = model.hf.generate(tokens, attention_mask=mask, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert torch.equal(theirs[:, -1], logits[:, -1].argmax(-1))

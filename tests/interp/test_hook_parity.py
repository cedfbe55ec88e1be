"""Every hook against two other implementations: TransformerLens's bridge, and Hugging Face eager attention."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.interp import HookedModel, load_model

TOLERANCE = 1e-4
TEXT = ["gpt2-mini", "tiny-llama"]


@pytest.fixture(params=TEXT)
def text_model(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> tuple[HookedModel, Path]:
    folder = tiny_llama_dir if request.param == "tiny-llama" else EMBEDDED_DIR / "gpt2-mini"
    return load_model(folder, device="cpu"), folder


def _tokens(model: HookedModel) -> Tensor:
    return torch.randint(1, model.cfg.d_vocab, (2, 17), generator=torch.Generator().manual_seed(3))


def _bridge(folder: Path) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    if "llama" in folder.name:  # the tiny one has no tokenizer; any will do
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR / "gpt2-mini")
        return TransformerBridge.boot_transformers(str(folder), tokenizer=tokenizer, device="cpu", dtype=torch.float32)
    return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)


def test_hooks_equal_transformer_bridge(text_model: tuple[HookedModel, Path]) -> None:
    model, folder = text_model
    tokens = _tokens(model)
    bridge = _bridge(folder)
    bridge.set_use_attn_result(True)
    with torch.no_grad():
        theirs_logits, theirs = bridge.run_with_cache(tokens)
        ours_logits, ours = model.run_with_cache(tokens, lambda name: True)
    torch.testing.assert_close(ours_logits, theirs_logits, atol=TOLERANCE, rtol=0)
    compared = set()
    for name, value in ours.items():
        if name not in theirs or theirs[name].shape != value.shape:
            continue
        if name.endswith(
            "hook_normalized"
        ):  # with the norm's weights here (as HookedTransformer), without in the bridge
            continue
        allowed = torch.isfinite(value) & (theirs[name] > -1e4)  # masked scores hold −inf here, −1e5 or so there
        assert (value - theirs[name])[allowed].abs().max() < TOLERANCE, name
        compared.add(name.split(".", 2)[-1] if name.startswith("blocks") else name)
    needed = {"hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"}
    needed |= {f"attn.hook_{x}" for x in ("q", "k", "v", "z", "result", "pattern")} | {"mlp.hook_post"}
    assert needed <= compared, needed - compared


def test_vision_hooks_equal_transformer_bridge(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    """Scores apart: the bridge's hook of a vision model's scores holds its pattern."""
    pixels, bridge = glyphs.pixels[:3], _bridge(EMBEDDED_DIR / "vit-mini")
    with torch.no_grad():
        theirs_logits, theirs = bridge.run_with_cache(pixels)
        ours_logits, ours = vit_mini.run_with_cache(pixels, lambda name: not name.endswith("attn_scores"))
    torch.testing.assert_close(ours_logits, theirs_logits, atol=TOLERANCE, rtol=0)
    shared = {name for name in ours if name in theirs and theirs[name].shape == ours[name].shape}
    shared = {name for name in shared if not name.endswith("hook_normalized")}
    for name in shared:
        torch.testing.assert_close(ours[name], theirs[name], atol=TOLERANCE, rtol=0, msg=name)
    parts = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    needed = {f"blocks.{layer}.hook_{part}" for layer in range(vit_mini.cfg.n_layers) for part in parts}
    needed |= {f"blocks.{layer}.attn.hook_{x}" for layer in range(vit_mini.cfg.n_layers) for x in "qkvz"}
    assert {*needed, "hook_embed", "blocks.0.attn.hook_pattern", "blocks.0.mlp.hook_post"} <= shared


def _eager(folder: Path, cls: Any) -> Any:
    return cls.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def test_text_hooks_equal_eager(text_model: tuple[HookedModel, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model, folder = text_model
    tokens = _tokens(model)
    with torch.no_grad():
        theirs = _eager(folder, AutoModelForCausalLM)(tokens, output_attentions=True, output_hidden_states=True)
        logits, cache = model.run_with_cache(tokens, ["*hook_pattern", "*hook_resid_pre"])
    torch.testing.assert_close(logits, theirs.logits, atol=TOLERANCE, rtol=0)
    for layer in range(model.cfg.n_layers):
        torch.testing.assert_close(
            cache[f"blocks.{layer}.attn.hook_pattern"], theirs.attentions[layer], atol=TOLERANCE, rtol=0
        )
        torch.testing.assert_close(
            cache[f"blocks.{layer}.hook_resid_pre"], theirs.hidden_states[layer], atol=TOLERANCE, rtol=0
        )


def test_padding_mask_reaches_the_pattern(text_model: tuple[HookedModel, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model, folder = text_model
    tokens = _tokens(model)
    mask = torch.ones_like(tokens)
    mask[0, -5:] = 0
    with torch.no_grad():
        theirs = _eager(folder, AutoModelForCausalLM)(tokens, attention_mask=mask, output_attentions=True)
        _, cache = model.run_with_cache(tokens, "*hook_pattern", attention_mask=mask)
    for layer in range(model.cfg.n_layers):
        torch.testing.assert_close(
            cache[f"blocks.{layer}.attn.hook_pattern"], theirs.attentions[layer], atol=TOLERANCE, rtol=0
        )


@functools.cache
def _random_vision(kind: str) -> Any:
    import transformers

    torch.manual_seed(2)
    common: dict[str, Any] = {
        "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    if kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**common))
    elif kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=3)
        model = transformers.Dinov2WithRegistersModel(config)
    elif kind == "deit":
        model = transformers.DeiTForImageClassification(transformers.DeiTConfig(**common, intermediate_size=48))
    else:
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**common, intermediate_size=48))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, 0, 0.3)
        elif "lambda" in name:
            nn.init.uniform_(parameter, 0.2, 2.0)
    return model.eval()


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "registers"])
def test_vision_hooks_equal_eager(kind: str) -> None:
    hf = _random_vision(kind)
    pixels = torch.randn(2, 3, 16, 16)
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = hf(pixel_values=pixels, output_attentions=True, output_hidden_states=True)
        hf.set_attn_implementation("sdpa")
        model = load_model(hf)
        output, cache = model.run_with_cache(pixels, lambda name: True)
    expected = theirs.logits if hasattr(theirs, "logits") else theirs.last_hidden_state
    torch.testing.assert_close(output, expected, atol=TOLERANCE, rtol=0)
    assert model.cfg.n_prefix_tokens + model.cfg.grid[0] * model.cfg.grid[1] == theirs.attentions[0].shape[-1]
    for layer in range(model.cfg.n_layers):
        at = f"blocks.{layer}."
        torch.testing.assert_close(cache[at + "attn.hook_pattern"], theirs.attentions[layer], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(cache[at + "hook_resid_pre"], theirs.hidden_states[layer], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(
            cache[at + "hook_resid_mid"], cache[at + "hook_resid_pre"] + cache[at + "hook_attn_out"], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            cache[at + "hook_resid_post"], cache[at + "hook_resid_mid"] + cache[at + "hook_mlp_out"], atol=1e-5, rtol=0
        )


def test_weights_compose_to_hooks(tiny_llama: HookedModel, gpt2_mini: HookedModel) -> None:
    """hook_z · W_O + b_O is attn_out, and W_V on the normed input is hook_v, for GQA too."""
    for model in (tiny_llama, gpt2_mini):
        _, cache = model.run_with_cache(_tokens(model))
        for layer in range(model.cfg.n_layers):
            at = f"blocks.{layer}."
            z = cache[at + "attn.hook_z"]
            out = torch.einsum("bthe,hed->btd", z, model.W_O(layer)) + model.b_O(layer)
            torch.testing.assert_close(out, cache[at + "hook_attn_out"], atol=TOLERANCE, rtol=0)
            v = torch.einsum("btd,hde->bthe", cache[at + "ln1.hook_normalized"], model.W_V(layer)) + model.b_V(layer)
            torch.testing.assert_close(v, cache[at + "attn.hook_v"], atol=TOLERANCE, rtol=0)


def test_rotated_queries_make_the_pattern(tiny_llama: HookedModel) -> None:
    _, cache = tiny_llama.run_with_cache(_tokens(tiny_llama), ["*hook_rot_*", "*hook_pattern"])
    q, k = cache["blocks.1.attn.hook_rot_q"], cache["blocks.1.attn.hook_rot_k"].repeat_interleave(3, dim=2)
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * tiny_llama.cfg.d_head**-0.5
    causal = torch.ones(17, 17, dtype=torch.bool).tril()
    pattern = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    torch.testing.assert_close(pattern, cache["blocks.1.attn.hook_pattern"], atol=1e-5, rtol=0)


@pytest.mark.downloads
def test_real_models_equal_eager(smollm2: HookedModel, dinov2: HookedModel) -> None:
    from transformers import AutoModelForCausalLM

    tokens = smollm2.to_tokens("When Mary and John went to the store, John gave a drink to")
    folder = Path(smollm2.hf.config._name_or_path)
    with torch.no_grad():
        theirs = _eager(folder, AutoModelForCausalLM)(tokens, output_attentions=True)
        logits, cache = smollm2.run_with_cache(tokens, "blocks.5.attn.hook_pattern")
    torch.testing.assert_close(logits, theirs.logits, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(cache["blocks.5.attn.hook_pattern"], theirs.attentions[5], atol=TOLERANCE, rtol=0)
    top = int(logits[0, -1].argmax())
    assert smollm2.to_str_tokens([top]) == [" Mary"]
    assert dinov2.cfg.grid == (16, 16)

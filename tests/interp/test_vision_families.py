"""Every hook of every vision family against what transformers' eager attention is given and gives; other image sizes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.errors import CheckpointError, ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from tests.interp.tiny_families import recording
from tests.interp.tiny_vision import MAKE, make, pixels_for, tiny

TOLERANCE = 1e-4
Table = pytest.mark.parametrize("name", MAKE)
WIDE = (16, 24)  # 2:3, 4 × 6 patches


def _open(name: str, hf: Any = None) -> HookedModel:
    hf = copy.deepcopy(tiny(name)) if hf is None else hf
    hf.set_attn_implementation("sdpa")
    return load_model(hf)


def _plain(hf: Any) -> Any:
    """The module that reads images alone, by transformers' own names."""
    return hf.vision_model if hasattr(hf, "text_model") else hf


def _reference(name: str, pixels: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Any, list[dict[str, Any]]]:
    """transformers' own output, and what its attention was given and gave."""
    hf = _plain(make(name, dtype))
    seen = recording(hf)
    tower = getattr(hf, "vision_model", hf)  # of classifiers, whose config has one of its own
    tower.config._attn_implementation = "recording"
    given: dict[str, Any] = {"output_hidden_states": True}
    own = getattr(tower.config, "image_size", 24)
    if tuple(pixels.shape[-2:]) != (own, own) and "dinov2" not in name:
        given["interpolate_pos_encoding"] = True
    if name == "vit-mae":
        n = pixels.shape[-2] * pixels.shape[-1] // 16
        given["noise"] = torch.linspace(0, 1, n).expand(len(pixels), n)
    return hf(pixel_values=pixels.to(dtype), **given), seen


def _close(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, what
    gap = float((ours.float() - theirs.float()).abs().max())
    assert gap <= TOLERANCE, f"{what}: {gap:.2g}"


def _logits_or_state(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    found: Tensor = output.last_hidden_state if logits is None else logits
    return found


@Table
@pytest.mark.parametrize("size", [None, WIDE], ids=["own-size", "two-by-three"])
@torch.no_grad()
def test_hooks_equal_eager(name: str, size: tuple[int, int] | None) -> None:
    pixels = pixels_for(name, size=size)
    theirs, seen = _reference(name, pixels)
    model = _open(name)
    output, cache = model.run_with_cache(pixels, lambda _name: True)
    _close(output, _logits_or_state(theirs), "output")
    assert len(seen) == model.cfg.n_layers
    n_tokens = model.cfg.n_prefix_tokens + pixels.shape[-2] * pixels.shape[-1] // 16
    for layer, recorded in enumerate(seen):
        at = f"blocks.{layer}."
        for part in "qkv":
            _close(cache[f"{at}attn.hook_{part}"], recorded[part].transpose(1, 2), f"{at}{part}")
        _close(cache[at + "attn.hook_z"], recorded["z"], at + "z")
        _close(cache[at + "attn.hook_pattern"], recorded["pattern"], at + "pattern")
        assert recorded["pattern"].shape[-1] == n_tokens
        scores = recorded["q"].double() @ recorded["k"].double().mT * recorded["scaling"]
        _close(cache[at + "attn.hook_attn_scores"], scores, at + "scores")
        before, after = cache[at + "hook_resid_pre"], cache[at + "hook_resid_post"]
        _close(before, theirs.hidden_states[layer], at + "resid_pre")
        _close(before + cache[at + "hook_attn_out"], cache[at + "hook_resid_mid"], at + "resid_mid")
        _close(cache[at + "hook_resid_mid"] + cache[at + "hook_mlp_out"], after, at + "resid_post")
        result = cache[at + "attn.hook_result"].sum(2) + model.b_O(layer)
        scale = getattr(model.layers[layer].attn_out, "lambda1", 1)
        _close(result * scale, cache[at + "hook_attn_out"], at + "result")
    if name == "clip":
        _close(cache["ln_pre.hook_normalized"], theirs.hidden_states[0], "the norm in front")
        _close(cache["ln_final.hook_normalized"], theirs.pooler_output, "the last norm, of CLS")
    elif "classifier" not in name and name not in ("vit", "deit"):
        _close(cache["ln_final.hook_normalized"], theirs.last_hidden_state, "the last norm")


@Table
@torch.no_grad()
def test_a_hook_that_writes_what_it_read_changes_nothing(name: str) -> None:
    model, pixels = _open(name), pixels_for(name)
    names = [h for h in model.hook_names() if h.startswith(("blocks.0.", "ln_pre."))]
    clean = model(pixels)
    for hook in names:
        with model.hooks({hook: lambda tensor, _name: tensor.clone()}):
            _close(model(pixels), clean, hook)
    for hook in ("blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z", "blocks.0.mlp.hook_post"):
        with model.hooks({hook: lambda tensor, _name: tensor.roll(1, 0)}):  # the other image's
            assert (model(pixels) - clean).abs().max() > 1e-2, hook


@Table
@torch.no_grad()
def test_bfloat16_within_its_rounding(name: str) -> None:
    """Queries and keys bit for bit, patterns to one part in 64, against transformers in bfloat16."""
    pixels = pixels_for(name)
    _, seen = _reference(name, pixels, torch.bfloat16)
    model = _open(name, make(name, torch.bfloat16))
    names = [f"blocks.0.attn.hook_{part}" for part in ("q", "k", "pattern")]
    cache = model.run_with_cache(pixels, names)[1]
    for part in "qk":
        assert torch.equal(cache[f"blocks.0.attn.hook_{part}"], seen[0][part].transpose(1, 2))
    gap = (cache[names[2]].float() - seen[0]["pattern"].float()).abs().max()
    assert gap < 1 / 64


@Table
@torch.no_grad()
def test_a_folder_opens_as_the_module(name: str, tmp_path: Path) -> None:
    hf, pixels = tiny(name), pixels_for(name)
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    _close(model(pixels), _open(name)(pixels), "output")
    assert model.cfg.family == "vit"
    assert bool(model.structure.notes) == (name in ("clip", "siglip"))


@pytest.mark.parametrize(("name", "tower"), [("clip", "CLIPVisionModel"), ("siglip", "SiglipVisionModel")])
@torch.no_grad()
def test_a_tower_alone_is_that_of_the_whole(name: str, tower: str, tmp_path: Path) -> None:
    whole, pixels = _open(name), pixels_for(name)
    assert type(whole.hf).__name__ == tower
    assert hasattr(whole.whole, "text_model")
    whole.hf.save_pretrained(tmp_path)
    alone = load_model(tmp_path, device="cpu")
    assert alone.cfg == whole.cfg
    _close(alone(pixels), whole(pixels), "output")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    _close(load_model(tmp_path, device="cpu")(pixels), whole(pixels), "output without a stated class")


@torch.no_grad()
def test_with_projection_and_masked_autoencoder_with_decoder() -> None:
    import transformers as tf

    whole = tiny("clip")
    projected = tf.CLIPVisionModelWithProjection(whole.config.vision_config).eval()
    projected.vision_model.load_state_dict(whole.vision_model.state_dict())
    pixels = pixels_for("clip")
    _close(load_model(projected)(pixels), _open("clip")(pixels), "with its projection")
    mae = tf.ViTMAEForPreTraining(copy.deepcopy(tiny("vit-mae").config)).eval()
    mae.vit.load_state_dict(tiny("vit-mae").state_dict())
    model = load_model(mae)
    assert model.hf is mae.vit
    _close(model(pixels_for("vit-mae")), _open("vit-mae")(pixels_for("vit-mae")), "the encoder")


@torch.no_grad()
def test_a_masked_autoencoder_sees_every_patch_where_it_is(tmp_path: Path) -> None:
    """A folder is opened with nothing masked; a module that masks is refused; a patch changes its own token first of all."""
    hf = make("vit-mae")
    hf.config.mask_ratio = 0.75
    with pytest.raises(UnsupportedModelError, match=r"masks 75% .* set model.config.mask_ratio = 0"):
        load_model(hf)
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    pixels = pixels_for("vit-mae")
    moved = pixels.clone()
    moved[:, :, 8:12, 4:8] += 1  # patch (2, 1) of 6 × 6
    names = ["hook_embed", "blocks.0.hook_resid_pre"]
    before, after = (model.run_with_cache(x, names)[1]["hook_embed"] for x in (pixels, moved))
    changed = (before - after).abs().amax((0, 2)) > 1e-3
    assert changed.nonzero().flatten().tolist() == [1 + 2 * 6 + 1]
    _close(model(pixels), model(pixels), "twice the same")


def test_prefix_tokens_have_names() -> None:
    assert _open("dinov2-registers").cfg.prefix_names == ("CLS", *(f"register {i}" for i in (1, 2, 3, 4)))
    assert _open("deit").cfg.prefix_names == ("CLS", "distillation")
    assert _open("siglip").cfg.prefix_names == ()
    for name in MAKE:
        assert len(_open(name).cfg.prefix_names) == _open(name).cfg.n_prefix_tokens


@torch.no_grad()
def test_the_pooling_heads_pattern() -> None:
    """The hook is what torch's own attention averages over heads, an edit reaches the embedding, a gradient the pattern."""
    model, pixels = _open("siglip"), pixels_for("siglip")
    head = model.hf.head
    state = model(pixels)
    cache = model.run_with_cache(pixels, "pool.hook_pattern")[1]
    pattern = cache["pool.hook_pattern"]
    probe = head.probe.expand(2, -1, -1)
    _, theirs = head.attention(probe, state, state, need_weights=True, average_attn_weights=False)
    _close(pattern, theirs, "pattern")
    clean = model.hf(pixel_values=pixels).pooler_output
    with model.hooks({"pool.hook_pattern": lambda x, _name: x.clone()}):
        _close(model.hf(pixel_values=pixels).pooler_output, clean, "as it was")
    first = torch.zeros_like(pattern)
    first[..., 7] = 1
    with model.hooks({"pool.hook_pattern": lambda _x, _name: first}):
        found = model.hf(pixel_values=pixels).pooler_output
    only = head(state[:, 7:8])
    _close(found, only, "one patch alone")
    assert "pool.hook_pattern" not in _open("clip").hook_names()


def test_a_gradient_reaches_the_pooling_pattern() -> None:
    model, pixels = _open("siglip"), pixels_for("siglip")
    kept: list[Tensor] = []
    with model.hooks({"pool.hook_pattern": lambda x, _name: kept.append(x)}):
        output = model.hf(pixel_values=pixels).pooler_output
    (gradient,) = torch.autograd.grad(output.sum(), kept)
    assert gradient.abs().max() > 1e-3


def test_sizes_that_cannot_be_read(tmp_path: Path) -> None:
    import transformers as tf

    model = _open("clip")
    with pytest.raises(ConfigError, match="no whole number of 4 px patches"):
        model(pixels_for("clip", size=(18, 24)))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
    narrow = tf.ViTModel(tf.ViTConfig(**shape, image_size=(8, 32)))
    with pytest.raises(ConfigError, match=r"of \(8, 32\) px only, not \(16, 16\).*its own is 2 × 8"):
        load_model(narrow.eval())(pixels_for("vit", size=(16, 16)))
    tiny("clip").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (
        ({"num_hidden_layers": 2}, "states 2 layers of its vision model, the weights hold 3"),
        ({"hidden_size": "many"}, r"vision_config\.hidden_size is \"many\", not a whole number"),
        ({"intermediate_size": 96}, r"config.json makes vision_model.* \[96"),
    ):
        changed = {**config, "vision_config": {**config["vision_config"], **change}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=match):
            load_model(tmp_path, device="cpu")

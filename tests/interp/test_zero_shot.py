"""Zero-shot classification against transformers' own CLIPModel and SiglipModel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from attlas.data.images.processor import to_pixels
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.interp.labels import class_names, class_probabilities
from attlas.interp.vision.zero_shot import zero_shot
from tests.interp.tiny_towers import write
from tests.interp.tiny_vision import pixels_for

CLASSES = ("cat", "dog", "tall_owl")
TEMPLATES = ("a photo of a {}.", "a red picture of a {}")
Both = pytest.mark.parametrize("name", ["clip", "siglip"])


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HookedModel]:
    return {n: load_model(write(n, tmp_path_factory.mktemp(n)), device="cpu") for n in ("clip", "siglip")}


def _theirs(model: HookedModel, pixels: Tensor, prompts: list[str]) -> Any:
    """transformers' own output for prompts, tokenised as its documentation says."""
    how = {"padding": True} if "clip" in model.name else {"padding": "max_length", "max_length": 24}
    rows = model.tokenizer(prompts, return_tensors="pt", **how)
    given = {"input_ids": rows["input_ids"]} | (
        {"attention_mask": rows["attention_mask"]} if "clip" in model.name else {}
    )
    return model.whole(pixel_values=pixels, **given)


@Both
@torch.no_grad()
def test_logits_equal_transformers(name: str, towers: dict[str, HookedModel]) -> None:
    model, pixels = towers[name], pixels_for(name, 3)
    theirs = _theirs(model, pixels, [f"a photo of a {c.replace('_', ' ')}." for c in CLASSES]).logits_per_image
    named = zero_shot(model, CLASSES)
    ours = named(pixels)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1)
    assert named.cfg.n_classes == 3
    assert class_names(named) == CLASSES
    wanted = theirs.softmax(-1) if name == "clip" else theirs.sigmoid()
    assert (class_probabilities(named, ours) - wanted).abs().max() <= 1e-5
    assert (ours[:, 0] - theirs[:, 1]).abs().max() > 1e-2  # classes differ


@Both
@torch.no_grad()
def test_templates_are_averaged_as_unit_vectors(name: str, towers: dict[str, HookedModel]) -> None:
    model, pixels = towers[name], pixels_for(name, 3)
    rows = [
        _theirs(model, pixels, [t.format(c.replace("_", " ")) for t in TEMPLATES]).text_embeds.double() for c in CLASSES
    ]
    weights = torch.stack([normalize(normalize(row, dim=-1).mean(0), dim=0) for row in rows])
    image = normalize(_theirs(model, pixels, ["a cat"]).image_embeds.double(), dim=-1)
    bias = float(getattr(model.whole, "logit_bias", torch.zeros(1)))
    wanted = image @ weights.T * float(model.whole.logit_scale.exp()) + bias
    ours = zero_shot(model, CLASSES, TEMPLATES)(pixels)
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1)
    assert (zero_shot(model, CLASSES)(pixels) - wanted).abs().max() > 1e-3


@Both
@torch.no_grad()
def test_it_shares_weights_hooks_and_names(name: str, towers: dict[str, HookedModel]) -> None:
    model, pixels = towers[name], pixels_for(name)
    named = zero_shot(model, CLASSES)
    assert named.hook_names() == model.hook_names()
    assert (named.name, named.weight_hash) == (model.name, model.weight_hash)
    assert named.layers[0].q is model.layers[0].q
    assert named.recorded == {"zero_shot": {"classes": [*CLASSES], "templates": ["a photo of a {}."]}}
    hook = "blocks.1.attn.hook_z"
    ours, plain = (m.run_with_cache(pixels, hook)[1][hook] for m in (named, model))
    assert torch.equal(ours, plain)
    assert zero_shot(named, ("dog", "cat")).cfg.n_classes == 2
    wide = torch.cat([pixels, pixels[..., :12]], dim=-1)  # another size than its own
    assert named(wide).shape == (2, 3)


@torch.no_grad()
def test_the_linear_map_of_clip(towers: dict[str, HookedModel]) -> None:
    """W_U on the normed CLS, over the embedding's length, is the logits; SigLIP has none and says so."""
    named, pixels = zero_shot(towers["clip"], CLASSES), pixels_for("clip")
    logits, cache = named.run_with_cache(pixels, "ln_final.hook_normalized")
    state = cache["ln_final.hook_normalized"]
    length = named.whole.visual_projection(state).norm(dim=-1, keepdim=True)
    assert (state @ named.W_U / length - logits).abs().max() < 1e-5
    with pytest.raises(UnsupportedModelError, match="no linear map of the normed state"):
        _ = zero_shot(towers["siglip"], CLASSES).W_U


def test_what_cannot_be_named(towers: dict[str, HookedModel], vit_mini: HookedModel, gpt2_mini: HookedModel) -> None:
    clip = towers["clip"]
    for model in (vit_mini, gpt2_mini, load_model(clip.hf)):
        with pytest.raises(UnsupportedModelError, match="has no text tower"):
            zero_shot(model, CLASSES)
    with pytest.raises(UnsupportedModelError, match="has no tokenizer, which names of classes need"):
        zero_shot(load_model(clip.whole), CLASSES)
    for classes, match in ((("cat",), "two classes or more"), (("cat", "cat"), "'cat' is empty or named twice")):
        with pytest.raises(ConfigError, match=match):
            zero_shot(clip, classes)
    with pytest.raises(ConfigError, match="no place for the class"):
        zero_shot(clip, CLASSES, ("a photo of a cat",))


@Both
def test_image_processors_are_their_own(name: str, towers: dict[str, HookedModel]) -> None:
    """CLIP: shortest edge, then the centre; SigLIP: squeezed to a square; both bicubic by PIL, against PIL by hand."""
    spec = towers[name].image_spec
    assert spec is not None
    side = 28 if name == "clip" else 24
    assert spec.size == (side, side)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 91, 3), dtype=np.uint8))
    if name == "clip":
        resized = image.resize((int(side * 91 / 60), side), Image.Resampling.BICUBIC)
        left = (resized.width - side) // 2
        expected = resized.crop((left, 0, left + side, side))
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    else:
        expected = image.resize((side, side), Image.Resampling.BICUBIC)
        mean = std = (0.5, 0.5, 0.5)
    wanted = (np.asarray(expected, dtype=np.float64) / 255 - mean) / std
    ours = to_pixels(image, spec).permute(1, 2, 0).double().numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-5)

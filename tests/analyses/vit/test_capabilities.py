"""What each family of vision models can be asked: every analysis runs and adds up, or refuses in one line.

`docs/vit.md` has the table; ATTLAS_WRITE_DOCS=1 writes it anew.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attlas.analyses import pruning
from attlas.analyses.features.logits import logit_effects
from attlas.analyses.pruning.scores import LossMeter
from attlas.analyses.vit.config import VitPatternsConfig, VitPruningConfig
from attlas.analyses.vit.importance import head_importance
from attlas.analyses.vit.patterns.run import vit_patterns
from attlas.analyses.vit.pruning import vit_pruning
from attlas.analyses.vit.readout import embedding, make_readout
from attlas.analyses.vit.relevance import class_relevance
from attlas.analyses.vit.rollout import token_relevance
from attlas.analyses.vit.strength import head_strength
from attlas.analyses.vit.tokens.removal import removal_curves
from attlas.data.images.dataset import ImageDataset
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, attended, load_model
from attlas.interp.drop import Drop, masked
from attlas.interp.names import POOL
from attlas.interp.vision.zero_shot import zero_shot
from attlas.saes import TrainConfig, train_sae
from tests.interp.tiny_families import recording
from tests.interp.tiny_towers import write
from tests.interp.tiny_vision import MAKE, make, pixels_for, tiny

PAGE = Path(__file__).resolve().parents[3] / "docs" / "vit.md"
TOLERANCE = 1e-4
NAMED = {"clip-zero-shot": "clip", "siglip-zero-shot": "siglip"}
LIKE = {name: like for name, (like, _) in MAKE.items()} | {
    "clip-zero-shot": "clip-vit-base-patch32, classes given as text",
    "siglip-zero-shot": "siglip-base-patch16-224, classes given as text",
}
STATE = "ln_final.hook_normalized"


@dataclasses.dataclass
class Subject:
    """One family's model, images of it with labels, and what transformers' eager attention makes of them."""

    model: HookedModel
    images: ImageDataset
    patterns: list[Tensor]


@functools.cache
def _named(name: str, folder: Path) -> HookedModel:
    return zero_shot(load_model(write(name, folder / name), device="cpu"), ("cat", "dog", "owl"))


def _subject(name: str, folder: Path) -> Subject:
    base = NAMED.get(name, name)
    model = _named(base, folder) if name in NAMED else load_model(copy.deepcopy(tiny(name)))
    pixels = pixels_for(base, 6)
    labels = torch.arange(6) % 3
    names = ("cat", "dog", "owl") if name in NAMED else None
    images = ImageDataset(pixels, np.zeros((6, 8, 8, 3), np.uint8), labels, names, "random", "0" * 16)
    hf: Any = make(base)
    hf = hf.vision_model if hasattr(hf, "text_model") else hf
    seen = recording(hf)
    getattr(hf, "vision_model", hf).config._attn_implementation = "recording"
    noise = {"noise": torch.arange(36.0).expand(6, -1)} if name == "vit-mae" else {}
    hf(pixel_values=pixels, **noise)
    return Subject(model, images, [layer["pattern"].detach() for layer in seen])


def _gap(ours: Any, theirs: Any) -> float:
    return float((torch.as_tensor(np.asarray(ours)) - torch.as_tensor(np.asarray(theirs))).abs().max())


@torch.no_grad()
def _without(s: Subject, heads: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """(output, embedding) of the whole model with heads at zero, by plain hooks."""

    def silence(z: Tensor, name: str) -> Tensor:
        z = z.clone()
        z[:, :, [head for layer, head in heads if name.startswith(f"blocks.{layer}.")]] = 0
        return z

    with s.model.hooks({f"blocks.{layer}.attn.hook_z": silence for layer, _ in heads}):
        output, cache = s.model.run_with_cache(s.images.pixels, STATE)
    return output, embedding(s.model, cache[STATE])


def _importance(s: Subject) -> float:
    found = head_importance(s.model, s.images, ablations=("zero",))[0].per_image["cls_distance"]
    (_, clean), (_, after) = _without(s, []), _without(s, [(1, 2)])
    return _gap(found[:, 1, 2], 1 - torch.nn.functional.cosine_similarity(clean, after))


def _strength(s: Subject) -> float:
    found = head_strength(s.model, s.images)
    n = s.model.cfg.n_prefix_tokens
    own = torch.stack([p[:, :, n:, n:].diagonal(dim1=-2, dim2=-1).mean(-1) for p in s.patterns], dim=1)
    whole = found.ring_mass.sum(-1) + found.mean("patch_to_prefix")
    return max(_gap(found.per_image["self"], own), _gap(whole, np.ones_like(whole)))


def _rollout(s: Subject) -> float:
    product = torch.eye(s.patterns[0].shape[-1], dtype=torch.float64)
    for pattern in s.patterns:
        product = (pattern.double().mean(1) + torch.eye(product.shape[-1])) / 2 @ product
    n = s.model.cfg.n_prefix_tokens
    rows = product[:, 0, n:] if n else product.mean(1)
    if s.model.structure.pool is not None:
        drawn = s.model.run_with_cache(s.images.pixels, POOL)[1][POOL][:, :, 0].detach().double()
        rows = (drawn.mean(1)[:, None] @ product)[:, 0]
    return _gap(token_relevance(s.model, s.images.pixels)["rollout"], rows)


def _relevance(s: Subject) -> float:
    """Of an image by itself as among others, 0 or more, and of another class another (values: test_relevance)."""
    if not s.model.cfg.n_classes:
        raise UnsupportedModelError("no classes")
    found = class_relevance(s.model, s.images.pixels[:2], torch.tensor([0, 1]))
    assert found.shape == (2, s.patterns[0].shape[-1] - s.model.cfg.n_prefix_tokens)
    assert (found >= 0).all()
    other = class_relevance(s.model, s.images.pixels[:2], torch.tensor([1, 0]))
    assert (found - other).abs().max() > 1e-6
    single = class_relevance(s.model, s.images.pixels[:1], torch.tensor([0]))
    return _gap(found[0] / found.max(), single[0] / found.max())


def _tokens(s: Subject) -> float:
    """With no patch gone the answer is the whole one; with half gone it is that of a model that cannot see them."""
    readout = make_readout(s.model, s.images)
    n, order = s.model.cfg.n_prefix_tokens, torch.arange(s.patterns[0].shape[-1] - s.model.cfg.n_prefix_tokens)
    curve = removal_curves(s.model, s.images, readout, {"first": order.expand(6, -1)}, fractions=(0.0, 0.5))["first"]
    gaps = [_gap(curve.per_image["similarity"][0], np.ones(6))]
    if n:
        gone = n + order[: len(order) // 2]

        def hide(scores: Tensor, _name: str) -> Tensor:
            return scores.index_fill(-1, gone, -torch.inf)

        _, clean = _without(s, [])
        with torch.no_grad(), s.model.hooks({"blocks.*.attn.hook_attn_scores": hide}):
            state = s.model.run_with_cache(s.images.pixels, STATE)[1][STATE]
        seen = torch.nn.functional.cosine_similarity(clean, embedding(s.model, state))
        gaps.append(_gap(curve.per_image["similarity"][1], seen))
    return max(gaps)


def _patterns(s: Subject) -> float:
    config = VitPatternsConfig(n_maps=60, n_clusters=2, n_latent=2, n_epochs=1, n_seeds=2, layout="pca")
    result = vit_patterns(s.model, s.images, config)
    return _gap(sum(row["share"] for row in result.tables()["clusters"].to_pylist()), 1.0)


def _pruning(s: Subject) -> float:
    """The curve with one head gone, by its embedding."""
    small = VitPruningConfig(n_search=3, n_candidates=1, max_heads=1, n_random=0, n_bootstrap=10)
    result = vit_pruning(s.model, s.images, small)
    (_, clean), (_, after) = _without(s, []), _without(s, result.orders["greedy"])
    wanted = 1 - torch.nn.functional.cosine_similarity(clean, after)
    found = result.curves["greedy"]["cls_distance"][1]
    return float(np.abs(np.sort(found)[:, None] - wanted.numpy()[None]).min(1).max())


def _drops(s: Subject) -> float:
    config = pruning.DropCurveConfig(targets=("attn",), orders=("last",), counts=(1,))
    result = pruning.drop_curve(s.model, s.images.take(3), s.images, config)
    loss = result.point("attn", "last", 1)[0]
    meter = LossMeter(s.model, s.images)
    with masked(s.model, Drop(attn=(2,))):
        return abs(loss - float((meter.measure().loss - meter.whole.loss).mean()))


def _export(s: Subject, folder: Path, layout: str) -> float:
    drop = Drop(heads=((0, 1),))
    pruning.export(s.model, drop, folder / layout, format=layout, verify=False)
    with torch.no_grad(), masked(s.model, drop):
        wanted = s.model(s.images.pixels)
    return _gap(load_model(folder / layout, device="cpu")(s.images.pixels).detach(), wanted)


def _sparse(s: Subject) -> float:
    """An autoencoder trained on hook_z, spliced in with its error term: the model as it was."""
    hook = "blocks.1.attn.hook_z"
    config = TrainConfig(hooks=(hook,), d_sae=16, k=2, n_tokens=200, batch_size=40, buffer_tokens=100, capture_batch=2)
    sae = train_sae(config, model=s.model, data=s.images, progress=False).saes[hook]
    with torch.no_grad(), s.model.with_saes({hook: sae}):
        return _gap(s.model(s.images.pixels), _without(s, [])[0])


def _statistics(s: Subject) -> float:
    gaps = []
    for layer, pattern in zip(attended(s.model, s.images.pixels), s.patterns, strict=True):
        exact = -(pattern.double() * pattern.double().clamp_min(1e-300).log()).sum(-1)
        gaps.append(_gap(layer.stats(window=4).entropy, exact))
    return max(gaps)


def _logit_effects(s: Subject) -> float:
    """Along CLS's (or every token's) direct path: what is promoted most is what the classifier's weights say."""
    model = s.model
    W_dec = torch.randn(4, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    found = logit_effects(model, W_dec, "blocks.2.hook_resid_post", n=2)
    norm: Any = model.final_norm
    weight = model.hf.classifier.weight
    projection = getattr(model.hf, "visual_projection", None)
    weight = weight if projection is None else model.hf.logit_scale.exp() * weight @ projection.weight
    effects = ((W_dec - W_dec.mean(-1, keepdim=True)) * norm.weight) @ weight.T
    return _gap(found[0].detach(), effects.topk(2).values.detach())


CAPABILITIES: dict[str, Callable[..., float]] = {
    "importance": _importance,
    "strength": _strength,
    "rollout": _rollout,
    "relevance": _relevance,
    "tokens removed": _tokens,
    "patterns": _patterns,
    "group pruning": _pruning,
    "drop curves": _drops,
    "stock export": functools.partial(_export, layout="stock"),
    "compact export": functools.partial(_export, layout="compact"),
    "SAE on hook_z": _sparse,
    "entropy": _statistics,
    "logit effects": _logit_effects,
}


def _row(name: str, folder: Path) -> dict[str, str]:
    subject, cells = _subject(name, folder), {}
    said: list[str] = []
    for what, check in CAPABILITIES.items():
        more = (folder / name,) if "export" in what else ()
        try:
            gap = check(subject, *more)
            assert gap <= TOLERANCE, f"{name}, {what}: {gap:.2g}"
            cells[what] = "yes"
        except (UnsupportedModelError, ConfigError) as error:
            cells[what], said = "—", [*said, str(error)]
    assert not any("\n" in line for line in said)
    return cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vision")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIKE)
def test_every_analysis_adds_up_or_refuses(name: str, folder: Path) -> None:
    cells = _row(name, folder)
    line = f"| {name} ({LIKE[name]}) | " + " | ".join(cells.values()) + " |"
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("ATTLAS_WRITE_DOCS"):
        text = re.sub(rf"^\| {re.escape(name)} \(.*$", lambda _: line, text, flags=re.M)
        PAGE.write_text(text, encoding="utf-8")
    assert line in text.splitlines(), line
    assert "| like | " + " | ".join(CAPABILITIES) + " |" in text

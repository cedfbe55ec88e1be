"""Work on images: the model's sample pictures and uploads, under its heads and its sparse features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attlas.analyses.vit.one_image import answer, feature_heat, image_attention
from attlas.analyses.vit.relevance import class_relevance
from attlas.dashboard.autoencoders import autoencoder
from attlas.dashboard.jobs import Job
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.images.dataset import ImageDataset, default_images, load_images, shrink
from attlas.data.images.processor import to_array
from attlas.data.models_catalog import catalog
from attlas.data.workspace import Run
from attlas.errors import ConfigError, ImageDataError, UnsupportedModelError
from attlas.interp.require import patch_grid
from attlas.interp.vision.zero_shot import zero_shot

if TYPE_CHECKING:
    from attlas.analyses.vit.one_image import Answer, FeatureHeat, Head, ImageAttention
    from attlas.interp import HookedModel

KINDS = ("vit", "vit_patterns", "vit_tokens", "vit_pruning")
N_SAMPLES = 24
SECONDS = 90.0


@dataclass(frozen=True)
class Picture:
    """One image as the model sees it.

    Attributes:
        shown: uint8 [h, w, 3].
        caption: its class, or where it came from.
        attention: every head's attention on it, and the answer.
        classes: names of the model's classes; numbers where it has none; empty for a backbone.
    """

    shown: np.ndarray
    caption: str
    attention: ImageAttention
    classes: tuple[str, ...]


def vit_names(reader: WorkspaceReader) -> list[str]:
    """Vision models that can run here, those the workspace is about first."""
    ready = [card.name for card in catalog() if card.family == "vit" and card.present]
    can = {*ready, *reader.jobs.folders}
    seen = [run.model.name for kind in KINDS for run in reader.runs(kind) if run.model.name in can]
    return list(dict.fromkeys([*seen, *ready, *reader.jobs.folders]))


def _open(reader: WorkspaceReader, name: str) -> HookedModel:
    model = reader.jobs.model(name)
    if model.cfg.family != "vit":
        raise UnsupportedModelError(f"{name} is a {model.cfg.family} model; choose a vision model")
    if model.image_spec is None:
        raise ImageDataError(
            f"{name} has no preprocessor_config.json, so how it wants its images is not known; add one"
        )
    return _named(reader, name, model)


def _named(reader: WorkspaceReader, name: str, model: HookedModel) -> HookedModel:
    """The model as a classifier of the classes that its newest run was given as text, where one was."""
    runs = [run for kind in KINDS for run in reader.runs(kind, name)]
    asked = next((run.config["zero_shot"] for run in runs if "zero_shot" in run.config), None)
    if asked is None or not hasattr(model.whole, "text_model"):
        return model
    classes, templates = tuple(asked["classes"]), tuple(asked["templates"])
    return reader.jobs.kept(("zero-shot", name, classes, templates), lambda: zero_shot(model, classes, templates))


def _samples(reader: WorkspaceReader, name: str, model: HookedModel) -> ImageDataset:
    spec = model.image_spec
    return reader.jobs.kept(
        ("samples", name), lambda: load_images(default_images(spec), spec, n_images=N_SAMPLES, seed=0)
    )


def _caption(images: ImageDataset, index: int) -> str:
    if images.labels is None:
        return f"picture {index}"
    label = int(images.labels[index])
    return images.class_names[label] if images.class_names is not None else f"class {label}"


def samples_job(reader: WorkspaceReader, name: str) -> Job:
    """→ (thumbnails uint8 [n, ≤ 64, ≤ 64, 3], captions) to choose from."""

    def work(job: Job) -> tuple[np.ndarray, list[str]]:
        images = _samples(reader, name, _open(reader, name))
        return shrink(images.thumbnails), [_caption(images, i) for i in range(len(images))]

    return reader.jobs.job(("vision-samples", name), f"sample pictures for {name}", work, seconds=SECONDS)


def _image(reader: WorkspaceReader, name: str, model: HookedModel, image: str) -> tuple[np.ndarray, str]:
    """(uint8 [H, W, C] of the model's size, caption) of a sample's number or an upload's id.

    Raises:
        ConfigError, ImageDataError.
    """
    if image.isdigit() and len(image) < 6:
        images = _samples(reader, name, model)
        if int(image) >= len(images):
            raise ConfigError(f"there is no sample picture {image}; there are {len(images)}, from 0")
        array = images.thumbnails[int(image)]
        return array[..., :1] if model.image_spec.n_channels == 1 else array, _caption(images, int(image))
    content = reader.jobs.upload(image)
    if content is None:
        raise ConfigError("that file is not here: it was over 64 MB, or is gone since; drop it again")
    return to_array(content, model.image_spec), "your picture"


def attention_job(reader: WorkspaceReader, name: str, image: str) -> Job:
    """→ Picture: an image under every head."""

    def work(job: Job) -> Picture:
        model = _open(reader, name)
        array, caption = _image(reader, name, model, image)
        seen = image_attention(model, model.image_spec.normalise(array[None])[0])
        shown = array if array.shape[-1] == 3 else np.repeat(array, 3, axis=-1)
        return Picture(shown, caption, seen, class_names(model))

    return reader.jobs.job(("vision-attention", name, image), f"{name} reads the picture", work, seconds=SECONDS)


def prune_job(reader: WorkspaceReader, name: str, image: str, without: Sequence[Head]) -> Job:
    """→ Answer of the model with these heads set to zero."""
    heads = tuple(sorted(without))

    def work(job: Job) -> Answer:
        model = _open(reader, name)
        array, _ = _image(reader, name, model, image)
        return answer(model, model.image_spec.normalise(array[None])[0], heads)

    said = ", ".join(f"{layer}.{head}" for layer, head in heads)
    return reader.jobs.job(("vision-prune", name, image, heads), f"{name} without {said}", work, seconds=SECONDS)


def relevance_job(reader: WorkspaceReader, name: str, image: str, chosen: int | None) -> Job:
    """→ float32 [rows, columns]: gradient-weighted relevance for a class (None: the likeliest); None of a backbone."""

    def work(job: Job) -> np.ndarray | None:
        import torch

        model = _open(reader, name)
        if not model.cfg.n_classes:
            return None
        array, _ = _image(reader, name, model, image)
        pixels = model.image_spec.normalise(array[None]).to(model.device, model.dtype)
        found = class_relevance(model, pixels, None if chosen is None else torch.tensor([chosen]))[0]
        return found.reshape(patch_grid(model, pixels)).numpy()

    said = "the likeliest class" if chosen is None else f"class {chosen}"
    return reader.jobs.job(
        ("vision-relevance", name, image, chosen), f"{name}: relevance for {said}", work, seconds=SECONDS
    )


def heat_job(reader: WorkspaceReader, name: str, image: str, run: Run) -> Job:
    """→ list[FeatureHeat]: the sparse features that fire on an image."""

    def work(job: Job) -> list[FeatureHeat]:
        model = _open(reader, name)
        array, _ = _image(reader, name, model, image)
        sae = autoencoder(reader, run.id).to(model.device)
        return feature_heat(model, sae, model.image_spec.normalise(array[None])[0])

    return reader.jobs.job(("vision-heat", name, image, run.id), f"features of {run.id}", work, seconds=SECONDS)


def class_names(model: HookedModel) -> tuple[str, ...]:
    """Names of the classifier's classes; their numbers where the model only has placeholders."""
    known: dict[Any, str] = getattr(model.hf.config, "id2label", None) or {}
    found = []
    for i in range(model.cfg.n_classes):
        name = str(known.get(i, known.get(str(i), "")))
        found.append(f"class {i}" if not name or name.upper().startswith("LABEL_") else name)
    return tuple(found)

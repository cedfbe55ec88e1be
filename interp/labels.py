"""Labels of images in the numbering of a model's classifier: the one place where they are asked for."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attlas.data.images.files import shorten
from attlas.data.images.labels import config_classes, match_classes
from attlas.errors import ConfigError

if TYPE_CHECKING:
    from attlas.data.dataset import Dataset
    from attlas.interp.model import HookedModel


def class_names(model: HookedModel) -> tuple[str, ...]:
    """Names of the classifier's classes in its order; empty without a classifier, or where it has no names."""
    names = config_classes(getattr(model.hf.config, "id2label", None))
    return names if model.cfg.n_classes == len(names) else ()


def classifier_labels(model: HookedModel, images: Dataset, *, warn: bool = False) -> Tensor | None:
    """Labels int64 [n] in the numbering of the model's classifier, or None when they cannot be told.

    Class names are matched with the model's `id2label` (see `match_classes`); where the model has only placeholders
    ("LABEL_3"), or the images no names, equal numbers of classes count as the same order (said in a warning).

    Args:
        warn: say so when there are labels that the classifier does not have.
    """
    n_classes = model.cfg.n_classes
    if not n_classes or images.labels is None:
        return None
    labels, names = images.labels, images.class_names
    known = class_names(model)
    if names is None or not known:
        fits = int(labels.max()) < n_classes and len(names or range(n_classes)) == n_classes
        found = labels if fits else None
        if fits and names is not None:
            warnings.warn(
                f"{model.name} names no classes; {shorten(map(repr, names))} are taken as its 0, 1, …", stacklevel=2
            )
    elif names == known:
        found = labels
    else:
        places = [-1 if place is None else place for place in match_classes(names, known)]
        found = torch.tensor(places)[labels]
        found = found if bool((found >= 0).all()) else None
    if found is None and warn:
        warnings.warn(f"{_mismatch(model, images)}; labels are not used", stacklevel=2)
    return found


def class_probabilities(model: HookedModel, logits: Tensor) -> Tensor:
    """Probabilities [..., n_classes] as the model means its logits: a softmax, or (SigLIP) a sigmoid a class."""
    return logits.sigmoid() if model.structure.independent else logits.softmax(-1)


def targets_for(model: HookedModel, data: Dataset, *, warn: bool = False) -> Tensor | None:
    """What a prediction is compared with: the tokens of text, int64 [n, T]; labels of images in the classifier's numbering,
    int64 [n]; None where there are none.
    """
    return data.targets if data.tensor.ndim == 2 else classifier_labels(model, data, warn=warn)


def loss_labels(model: HookedModel, data: Dataset) -> Tensor | None:
    """Labels [n] for the loss of a vision model's classifier; None for a language model, whose text is its target.

    Raises:
        UnsupportedModelError: a language model's backbone: hidden states have no loss.
        ConfigError: no classifier, no labels, or classes that the classifier does not have.
    """
    if model.cfg.family != "vit":
        model.require_head("loss")
        return None
    if not model.cfg.n_classes or data.labels is None:
        raise ConfigError(f"{model.name} needs a classifier and labelled images for a loss; see `attlas vit`")
    labels = classifier_labels(model, data)
    if labels is None:
        raise ConfigError(f"{_mismatch(model, data)}; name the folders as its classes, or give a model of these")
    return labels


def _mismatch(model: HookedModel, images: Dataset) -> str:
    known, names, n = class_names(model), images.class_names, model.cfg.n_classes
    where = f"the classifier of {model.name} ({n} classes{': ' + shorten(map(repr, known)) if known else ', unnamed'})"
    if names is None:
        top = int(images.labels.max()) if images.labels is not None else -1
        return f"label {top} of the images is beyond {where}"
    if not known:
        return f"{len(names)} classes of the images ({shorten(map(repr, names))}) do not fit {where}"
    places = match_classes(names, known)
    strange = [name for name, place in zip(names, places, strict=True) if place is None]
    return f"the images' classes {shorten(map(repr, strange))} are not known to {where}"

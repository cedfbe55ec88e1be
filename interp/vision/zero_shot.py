"""Zero-shot classification: classes named in text, judged by a CLIP or SigLIP (Radford et al. 2021, arXiv 2103.00020).

A class's weights are the mean of the unit text features of its prompts, made a unit vector again (their prompt ensembling).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp.load import AnyModel, as_hooked
from attlas.interp.model import HookedModel
from attlas.interp.vision.classes import TextClassifier

TEMPLATES = ("a photo of a {}.",)


def zero_shot(model: AnyModel, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> HookedModel:
    """The vision tower of a CLIP or SigLIP as a classifier of classes given by name.

    It shares all weights with `model`, and every analysis takes it as it takes a classifier. Underscores in names are spaces
    in prompts.

    Args:
        model: a folder or module of a whole CLIPModel or SiglipModel, with its tokenizer.
        classes: names, such as an image set's `class_names`.
        templates: prompts with one {} each; several are averaged.

    Raises:
        UnsupportedModelError: the model has no text tower, or no tokenizer.
        ConfigError: fewer than two classes, one twice, or a template without {}.

    Example:
        >>> from attlas.interp.vision.zero_shot import zero_shot
        >>> from attlas.errors import UnsupportedModelError
        >>> try:
        ...     zero_shot(vit_model, ["cat", "dog"])  # of a CLIP: a HookedModel whose logits are [images, 2]
        ... except UnsupportedModelError as error:
        ...     print(str(error).partition(";")[0])
        vit-mini has no text tower, so classes cannot be given as text
    """
    model = as_hooked(model)
    names, prompts = tuple(classes), tuple(templates)
    _check(model, names, prompts)
    weights = class_weights(model, names, prompts)
    found = HookedModel(
        TextClassifier(model.whole, weights, names),
        name=model.name,
        weight_hash=model.weight_hash,
        tokenizer=model.tokenizer,
        image_spec=model.image_spec,
    )
    found.whole = model.whole
    found.recorded = {"zero_shot": {"classes": list(names), "templates": list(prompts)}}
    return found


def require_text_tower(model: HookedModel) -> None:
    """Raises UnsupportedModelError for a model that classes cannot be given to as text."""
    if not (hasattr(model.whole, "text_model") and hasattr(model.whole, "vision_model")):
        raise UnsupportedModelError(
            f"{model.name} has no text tower, so classes cannot be given as text; open the whole CLIP or SigLIP model"
        )
    model.require_tokenizer("names of classes")


def _check(model: HookedModel, names: tuple[str, ...], prompts: tuple[str, ...]) -> None:
    require_text_tower(model)
    if len(names) < 2:
        raise ConfigError(f"zero-shot needs two classes or more, not {list(names)}; name them, as --classes cat,dog")
    if twice := [name for name, n in Counter(names).items() if n > 1 or not name.strip()]:
        raise ConfigError(f"class '{twice[0]}' is empty or named twice; give each class once")
    if wrong := [t for t in prompts if t.count("{}") != 1] or (["none"] if not prompts else []):
        raise ConfigError(
            f"template '{wrong[0]}' has no place for the class; write one {{}} in it, as 'a photo of a {{}}.'"
        )


@torch.no_grad()
def class_weights(model: HookedModel, names: Sequence[str], templates: Sequence[str], batch_size: int = 64) -> Tensor:
    """Unit vectors of classes, [n_classes, d], by the text tower, on the model's device."""
    texts = [template.format(name.replace("_", " ")) for name in names for template in templates]
    features = []
    for low in range(0, len(texts), batch_size):
        features.append(_text_features(model, texts[low : low + batch_size]))
    unit = torch.nn.functional.normalize(torch.cat(features).float(), dim=-1)
    means = unit.unflatten(0, (len(names), len(templates))).mean(1)
    return torch.nn.functional.normalize(means, dim=-1).to(model.dtype)


def _text_features(model: HookedModel, texts: list[str]) -> Tensor:
    """[n, d] of the text tower. SigLIP was trained on rows of one length, padding read along; CLIP stops at the end token."""
    whole = model.whole
    length = int(whole.config.text_config.max_position_embeddings)
    fixed = not hasattr(whole, "text_projection")
    how = {"padding": "max_length" if fixed else True, "max_length": length, "truncation": True, "return_tensors": "pt"}
    rows = model.tokenizer(texts, **how)
    given: dict[str, Any] = {"input_ids": rows["input_ids"].to(model.device)}
    if int(given["input_ids"].max()) >= whole.config.text_config.vocab_size:
        raise ConfigError(
            f"the tokenizer of {model.name} gives token {int(given['input_ids'].max())}, its text tower knows "
            f"{whole.config.text_config.vocab_size}; give the tokenizer the model was trained with"
        )
    if not fixed:
        given["attention_mask"] = rows["attention_mask"].to(model.device)
    pooled = whole.text_model(**given).pooler_output
    found: Tensor = pooled if fixed else whole.text_projection(pooled)
    return found

"""A vision tower with classes given as text: what a zero-shot classifier computes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class TextClassifier(nn.Module):
    """Logits of classes given as text: logit_scale · cosine(image embedding, class) + logit_bias (CLIP: no bias).

    It is the whole model's own vision tower, in `vision_model`; nothing is copied but the config, which names the classes.

    Args:
        whole: a CLIPModel or SiglipModel of transformers.
        weights: [n_classes, d], unit rows: what the text tower makes of the classes.
        names: of the classes.
    """

    def __init__(self, whole: Any, weights: Tensor, names: Sequence[str]) -> None:
        super().__init__()
        self.config = copy.deepcopy(whole.vision_model.config)
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: i for i, name in enumerate(names)}
        self.vision_model = whole.vision_model
        self.visual_projection: nn.Module | None = getattr(whole, "visual_projection", None)
        self.classifier = nn.Linear(
            weights.shape[1], weights.shape[0], bias=False, device=weights.device, dtype=weights.dtype
        )
        self.classifier.weight = nn.Parameter(weights.detach().clone(), requires_grad=False)
        self.logit_scale, self.logit_bias = whole.logit_scale, getattr(whole, "logit_bias", None)
        self.train(whole.training)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> SimpleNamespace:
        """An object with `logits` [B, n_classes] of pixels [B, C, H, W]."""
        seen = self.vision_model(pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        embedding = seen.pooler_output
        if self.visual_projection is not None:
            embedding = self.visual_projection(embedding)
        embedding = embedding / embedding.norm(dim=-1, keepdim=True)
        logits = self.classifier(embedding) * self.logit_scale.exp()
        return SimpleNamespace(logits=logits if self.logit_bias is None else logits + self.logit_bias)

    def unembedding(self) -> nn.Linear | None:
        """From the normed CLS [d_model] to logits, but for the embedding's norm, which depends on the image; None of SigLIP,
        whose embedding is no linear map of what it is drawn from."""
        if self.visual_projection is None:
            return None
        whole: Any = self.visual_projection
        with torch.no_grad():
            weight = self.logit_scale.exp() * self.classifier.weight @ whole.weight
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return linear

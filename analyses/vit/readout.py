"""What a vision model says about its images, and how far two answers are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.vit.probe import KnnProbe, LinearProbe
from attlas.data.images.dataset import ImageDataset
from attlas.data.stats import Interval, bootstrap_mean, count_mean
from attlas.interp import HookedModel
from attlas.interp.labels import class_probabilities, classifier_labels

Answer = tuple[Tensor, Tensor]
"""(logits [B, n_classes] or last hidden state, normed last hidden state [B, T, d_model]), as a Suffix returns it."""


@dataclass(frozen=True)
class Readout:
    """How the answers about one image set are judged.

    Attributes:
        n_classes: of the model's classifier, 0 without one.
        n_prefix: tokens before the patches.
        model: whose answers they are.
        labels: int64 [n] in the classifier's (or the probes') numbering, or None.
        knn, linear: probes, where there are labels that no classifier of the model knows.
    """

    n_classes: int
    n_prefix: int
    model: HookedModel
    labels: Tensor | None = None
    knn: KnnProbe | None = None
    linear: LinearProbe | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics `compare` returns, the main one first."""
        names = ["js", "prob_drop"] if self.n_classes else []
        if self.n_classes and self.labels is not None and self.knn is None:
            names.append("accuracy_drop")
        names.append("cls_distance")
        return tuple(names + (["knn_drop", "probe_drop"] if self.knn else []))

    @property
    def accuracy_metric(self) -> str | None:
        """The metric that is a fall of accuracy: accuracy_drop, knn_drop, or None without labels."""
        return next((m for m in ("accuracy_drop", "knn_drop") if m in self.metrics), None)

    def embed(self, state: Tensor) -> Tensor:
        """[B, T, d_model] → [B, d_model], see `embedding`."""
        return embedding(self.model, state)

    def probability(self, answer: Answer, rows: Tensor, clean: Answer) -> Tensor:
        """Probability [B] of the true class, or without labels of the class that `clean` predicts."""
        true = self.labels[rows] if self.labels is not None and self.knn is None else clean[0].argmax(-1)
        return class_probabilities(self.model, answer[0].float()).gather(-1, true[:, None])[:, 0]

    def correct(self, answer: Answer, rows: Tensor) -> dict[str, Tensor]:
        """Metric of accuracy → bool [B], for those the image set allows."""
        result: dict[str, Tensor] = {}
        if self.labels is None:
            return result
        labels = self.labels[rows]
        if self.knn is None:
            result["accuracy"] = answer[0].argmax(-1) == labels
        if self.knn is not None and self.linear is not None:
            features = self.embed(answer[1])
            result["knn_accuracy"] = self.knn.predict(features, rows) == labels
            result["probe_accuracy"] = self.linear.predict(features, rows) == labels
        return result

    def compare(self, clean: Answer, after: Answer, rows: Tensor) -> dict[str, Tensor]:
        """Metric → float [B]; `rows` [B] says which images of the set these are."""
        cosine = torch.nn.functional.cosine_similarity(self.embed(clean[1]), self.embed(after[1]), dim=-1)
        result = {"cls_distance": 1 - cosine}
        if self.n_classes:
            result["js"] = jensen_shannon(clean[0].float().softmax(-1), after[0].float().softmax(-1))
            result["prob_drop"] = self.probability(clean, rows, clean) - self.probability(after, rows, clean)
        before = self.correct(clean, rows)
        for name, right in self.correct(after, rows).items():
            drop = {"accuracy": "accuracy_drop", "knn_accuracy": "knn_drop", "probe_accuracy": "probe_drop"}[name]
            result[drop] = before[name].float() - right.float()
        return result


def embedding(model: HookedModel, state: Tensor) -> Tensor:
    """What stands for an image, float32 [B, d_model], of its normed last state [B, T, d_model].

    The first prefix token (CLS); without one what the pooling head draws from the patches, or their mean. CLIP norms CLS
    alone, so that state is [B, d_model] already.
    """
    if state.ndim == 2:
        return state.float()
    if model.cfg.n_prefix_tokens:
        return state[:, 0].float()
    pool = model.structure.pool
    return (state.mean(1) if pool is None else pool(state)).float()


def metric_mean(metric: str, values: np.ndarray, *, seed: int, n_samples: int) -> Interval:
    """Mean of a metric over images [n, …] with its 95 % interval: by counts where the metric counts right answers."""
    if metric.endswith("accuracy"):
        return count_mean(values)
    if metric in ("accuracy_drop", "knn_drop", "probe_drop"):
        return count_mean(values, differences=True)
    return bootstrap_mean(values, seed=seed, n_samples=n_samples)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions over the last axis, in nats (0 … log 2)."""
    middle = (p + q) / 2
    terms = [torch.special.xlogy(x, x / middle.clamp_min(1e-38)).sum(-1) for x in (p, q)]
    return (terms[0] + terms[1]) / 2


@torch.no_grad()
def make_readout(model: HookedModel, images: ImageDataset, batch_size: int = 32, seed: int = 0) -> Readout:
    """The readout that suits a model and an image set; fits probes (one clean pass) where labels need them."""
    cfg = model.cfg
    labels = classifier_labels(model, images)
    plain = Readout(cfg.n_classes, cfg.n_prefix_tokens, model, labels.to(model.device) if labels is not None else None)
    if labels is not None or images.labels is None or int((torch.bincount(images.labels) > 1).sum()) < 2:
        return plain
    embeddings = []
    for pixels in images.batches(batch_size):
        _, cache = model.run_with_cache(pixels, "ln_final.hook_normalized")
        embeddings.append(plain.embed(cache["ln_final.hook_normalized"]))
    features, own = torch.cat(embeddings), images.labels.to(model.device)
    knn, linear = KnnProbe.fit(features, own), LinearProbe.fit(features, own, seed=seed)
    return Readout(cfg.n_classes, cfg.n_prefix_tokens, model, own, knn, linear)

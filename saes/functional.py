"""What a model does with something else at a hook: cross-entropy, KL, accuracy, or the final state's direction.

Language models are judged by next-token cross-entropy, classifiers by cross-entropy and accuracy on labels, and
backbones (no classifier) by the cosine of their final CLS state with the clean one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from attlas.saes.splice import HookFn, replace_rows

if TYPE_CHECKING:
    from attlas.interp import HookedModel

Sums = dict[str, np.ndarray]


@dataclass(frozen=True)
class Baseline:
    """One batch, run clean and with zero and mean ablation.

    Attributes:
        behaviour: of which model and hook.
        batch: tokens or pixels.
        labels: of images, or None.
        clean: output of the untouched model.
        sums: the sums over each sequence that do not depend on the subject.
    """

    behaviour: Behaviour
    batch: Tensor
    labels: Tensor | None
    clean: Tensor
    sums: Sums


@dataclass(frozen=True)
class Behaviour:
    """A model, a hook, and whether images have labels."""

    model: HookedModel
    hook: str
    labelled: bool

    @property
    def kind(self) -> str:
        """ "language", "classifier", "unlabelled" (a classifier on images without labels) or "backbone"."""
        if self.model.cfg.family != "vit":
            return "language"
        if not self.model.cfg.n_classes:
            return "backbone"
        return "classifier" if self.labelled else "unlabelled"

    def run(self, batch: Tensor, patch: HookFn | None) -> Tensor:
        """Logits; of a backbone the final CLS states, or the mean over its patches where it has none."""
        if patch is None:
            output = self.model(batch)
        else:
            with self.model.hooks({self.hook: patch}):
                output = self.model(batch)
        if self.kind != "backbone":
            return output
        return output[:, 0] if self.model.cfg.n_prefix_tokens else output.mean(1)

    def baseline(self, batch: Tensor, labels: Tensor | None, mean_D: Tensor) -> Baseline:
        """Run the batch clean and with both ablations."""
        clean = self.run(batch, None)
        ones = torch.ones(len(batch))
        positions = batch.shape[1] if self.kind == "language" else 1
        sums: Sums = {"outputs": _numpy(ones * positions)}
        if self.kind in ("language", "classifier"):
            sums["predictions"] = _numpy(ones * (positions - 1 if self.kind == "language" else 1))
            sums["ce_clean"] = self.cross_entropy(batch, labels, clean)
        if self.kind == "classifier" and labels is not None:
            sums["accuracy_clean"] = _numpy(clean.argmax(-1) == labels)
        for name, patch in (
            ("zero", replace_rows(torch.zeros_like)),
            ("mean", replace_rows(lambda x: mean_D.to(x.dtype).expand_as(x))),
        ):
            sums |= self.compare(name, batch, labels, clean, self.run(batch, patch))
        return Baseline(self, batch, labels, clean, sums)

    def compare(self, name: str, batch: Tensor, labels: Tensor | None, clean: Tensor, other: Tensor) -> Sums:
        """Sums over each sequence for an output `other`, under names that end in `name`."""
        if self.kind == "backbone":
            suffix = "" if name == "spliced" else f"_{name}"
            return {f"output_cosine{suffix}": _numpy(cosine_similarity(clean.float(), other.float(), dim=-1))}
        found: Sums = {}
        if self.kind != "unlabelled":
            found[f"ce_{name}"] = self.cross_entropy(batch, labels, other)
        if name != "mean":
            found["kl" if name == "spliced" else f"kl_{name}"] = kl_sums(clean, other)
            if self.kind == "classifier" and labels is not None:
                found[f"accuracy_{name}"] = _numpy(other.argmax(-1) == labels)
        return found

    def cross_entropy(self, batch: Tensor, labels: Tensor | None, logits: Tensor) -> np.ndarray:
        """Summed over the predictions of each sequence, [B]."""
        if labels is not None and self.kind == "classifier":
            return _numpy(cross_entropy(logits.float(), labels, reduction="none"))
        return np.array(
            [
                float(cross_entropy(row[:-1].float(), tokens[1:], reduction="sum"))
                for row, tokens in zip(logits, batch, strict=True)
            ]
        )


def measure_behaviour(baseline: Baseline, patch: HookFn) -> Sums:
    """All sums of a batch with `patch` at the hook, the baseline's included."""
    behaviour = baseline.behaviour
    other = behaviour.run(baseline.batch, patch)
    spliced = behaviour.compare("spliced", baseline.batch, baseline.labels, baseline.clean, other)
    return {**baseline.sums, **spliced}


def kl_sums(clean: Tensor, other: Tensor) -> np.ndarray:
    """KL(clean ‖ other) summed over the positions of each sequence, [B]; one sequence at a time, to save memory."""
    sums = []
    for p_logits, q_logits in zip(clean, other, strict=True):
        log_p = torch.log_softmax(p_logits.float(), -1)
        log_q = torch.log_softmax(q_logits.float(), -1)
        sums.append(float((log_p.exp() * (log_p - log_q)).sum()))
    return np.array(sums)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()

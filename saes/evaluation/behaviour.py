"""What a model does with something else at a hook: cross-entropy, KL, accuracy, or the final state's direction.

Language models are judged by next-token cross-entropy, classifiers by cross-entropy and accuracy on labels, and
backbones (no classifier) by the cosine of their final CLS state (the mean of their patches, where they have none).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from attlas.interp.engine import HookFn
from attlas.interp.names import layer_of
from attlas.interp.prefix import Prefix

if TYPE_CHECKING:
    from attlas.data.dataset import Batch
    from attlas.interp import HookedModel

Sums = dict[str, np.ndarray]


def kind_of(model: HookedModel, labelled: bool) -> str:
    """ "language", "classifier", "unlabelled" (a classifier on images without labels) or "backbone"."""
    if model.cfg.family != "vit":
        return "language"
    if not model.cfg.n_classes:
        return "backbone"
    return "classifier" if labelled else "unlabelled"


class CleanRun:
    """One batch run untouched, once for all SAEs, hooks and controls; patched runs go on from its residual stream.

    Args:
        model: the model.
        batch: tokens or pixels; what is predicted in padding counts for nothing.
        labels: of images, on the model's device, or None.
        hooks: activations to keep.

    Attributes:
        cache: hook → activation.
        clean: output of the untouched model.
        sums: the sums over each sequence that do not depend on what is spliced in.
    """

    def __init__(self, model: HookedModel, batch: Batch, labels: Tensor | None, hooks: Sequence[str]) -> None:
        self.model, self.batch, self.labels = model, batch.inputs.to(model.device), labels
        self.lengths = _lengths(batch)
        self.kind = kind_of(model, labels is not None)
        self.cache: dict[str, Tensor] = {}
        self.prefix: Prefix | None = None

        def keep(activation: Tensor, name: str) -> Tensor:
            self.cache[name] = activation.detach()
            return activation

        with model.hooks(dict.fromkeys(hooks, keep)):
            if self.kind == "language":
                self.prefix = Prefix(model, self.batch)
                self.clean = self.prefix.output
            else:
                self.clean = self._output(model(self.batch))
        self.sums = self._clean_sums()

    def _output(self, output: Tensor) -> Tensor:
        """Logits; of a backbone the final CLS states, or the mean over its patches where it has none."""
        if self.kind != "backbone":
            return output
        return output[:, 0] if self.model.cfg.n_prefix_tokens else output.mean(1)

    def _clean_sums(self) -> Sums:
        ones = torch.ones(len(self.batch))
        n = torch.tensor(self.lengths) if self.kind == "language" else ones
        sums: Sums = {"outputs": _numpy(n)}
        if self.kind == "language":
            sums |= {"predictions": _numpy(n - 1), "ce_clean": self._language(None)[0]}
        elif self.kind == "classifier":
            assert self.labels is not None
            sums |= {"predictions": _numpy(ones), "ce_clean": self._label_loss(self.clean)}
            sums["accuracy_clean"] = _numpy(self.clean.argmax(-1) == self.labels)
        return sums

    def patched(self, hook: str, patch: HookFn) -> Tensor:
        """Output with `patch` at the hook: logits, or the final CLS states of a backbone."""
        layer = layer_of(hook)
        within = layer is not None and hook.split(".")[2] in ("attn", "hook_attn_out", "mlp")
        with self.model.hooks({hook: patch}):
            if self.prefix is not None and layer is not None and within:
                return self.prefix.run_from(layer, self.prefix.residual[layer], lambda logits: logits)[0]
            return self._output(self.model(self.batch))

    def compare(self, name: str, other: Tensor) -> Sums:
        """Sums over each sequence for an output `other`, under names that end in `name`."""
        if self.kind == "backbone":
            suffix = "" if name == "spliced" else f"_{name}"
            return {f"output_cosine{suffix}": _numpy(cosine_similarity(self.clean.float(), other.float(), dim=-1))}
        found: Sums = {}
        if self.kind == "language":
            found[f"ce_{name}"], kl = self._language(other, kl=name != "mean")
        else:
            kl = kl_sums(self.clean, other)
        if self.kind == "classifier":
            found[f"ce_{name}"] = self._label_loss(other)
        if name != "mean":
            found["kl" if name == "spliced" else f"kl_{name}"] = kl
            if self.kind == "classifier":
                assert self.labels is not None
                found[f"accuracy_{name}"] = _numpy(other.argmax(-1) == self.labels)
        return found

    def _label_loss(self, logits: Tensor) -> np.ndarray:
        assert self.labels is not None
        return _numpy(cross_entropy(logits.float(), self.labels, reduction="none"))

    def _language(self, other: Tensor | None, kl: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """(cross-entropy, KL(clean ‖ other)) summed over each sequence, one sequence at a time to save memory.

        With Z = log Σ exp: CE = Z − logit of the next token, KL = Σ p·(clean − other) − Z(clean) + Z(other); each logit
        is read once, and no log-softmax is written.
        """
        losses, divergences = [], []
        for row, n in enumerate(self.lengths):
            tokens, clean = self.batch[row, :n], self.clean[row, :n].float()
            logits = clean if other is None else other[row, :n].float()
            Z = logits.logsumexp(-1)
            right = logits[:-1].gather(-1, tokens[1:, None]).squeeze(-1)
            losses.append(float((Z[:-1] - right).double().sum()))
            if other is not None and kl:
                Z_clean = clean.logsumexp(-1)
                p = (clean - Z_clean[:, None]).exp_()
                expected = torch.linalg.vecdot(p, clean - logits)
                divergences.append(float((expected - Z_clean + Z).double().sum()))
        return np.array(losses), np.array(divergences)


def _lengths(batch: Batch) -> list[int]:
    """Tokens of text in each row; padding follows them."""
    if batch.mask is None:
        return [batch.inputs.shape[1]] * len(batch)
    return [int(n) for n in batch.mask.sum(1)]


def kl_sums(clean: Tensor, other: Tensor) -> np.ndarray:
    """KL(clean ‖ other) of each image's class probabilities, [B]."""
    log_p, log_q = torch.log_softmax(clean.float(), -1), torch.log_softmax(other.float(), -1)
    return _numpy((log_p.exp() * (log_p - log_q)).sum(-1))


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()

"""What the model says of one prompt when some parts of it are taken out.

A part is a head, an MLP, an autoencoder's feature or its error at one position. It is set to zero in a live run, so that
all later layers see it gone; of an autoencoder's layer everything else, the error included, stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.circuits.frozen import FrozenPass, Part
from attlas.analyses.circuits.terms import LogitTarget
from attlas.errors import ConfigError, LayerRangeError
from attlas.saes.base import SAE
from attlas.saes.decompose import check_feature, decompose

KINDS = ("feature", "error", "head", "mlp")


@dataclass(frozen=True)
class AblationResult:
    """Next-token logits at the target's position, with and without the parts.

    Attributes:
        parts: what was taken out.
        before, after: logits, float64 [V].
        target: right and wrong answers.
    """

    parts: tuple[Part, ...]
    before: Tensor
    after: Tensor
    target: LogitTarget

    def difference(self, logits: Tensor) -> float:
        """Mean logit of the right answers − mean logit of the wrong ones."""
        wrong = logits[list(self.target.wrong)].mean() if self.target.wrong else torch.zeros(())
        return float(logits[list(self.target.right)].mean() - wrong)

    def tokens(self, n: int = 5) -> list[dict[str, Any]]:
        """The n likeliest next tokens of either run: id, probability before and after, the likeliest before first."""
        p, q = self.before.softmax(-1), self.after.softmax(-1)
        ids = dict.fromkeys([*p.topk(n).indices.tolist(), *q.topk(n).indices.tolist()])
        rows = [{"id": i, "before": float(p[i]), "after": float(q[i])} for i in ids]
        return sorted(rows, key=lambda row: -row["before"])

    def summary(self) -> dict[str, Any]:
        """Headline numbers; the divergence is KL(before ‖ after) in nats."""
        p, q = self.before.log_softmax(-1), self.after.log_softmax(-1)
        before, after = self.difference(self.before), self.difference(self.after)
        return {
            "parts": [part.id for part in self.parts],
            "before": before,
            "after": after,
            "change": after - before,
            "kl": float((p.exp() * (p - q)).sum()),
        }


@torch.no_grad()
def ablate(frozen: FrozenPass, parts: Sequence[Part], target: LogitTarget) -> AblationResult:
    """Run the prompt without some parts.

    Args:
        frozen: the prompt's pass, with the autoencoders whose features are meant.
        parts: heads, MLPs, features or errors, each at one position.

    Raises:
        ConfigError, LayerRangeError: a part is not there, or is none that can be taken out.

    Example:
        >>> from attlas.analyses.circuits import FrozenPass, LogitTarget, Part, ablate
        >>> frozen = FrozenPass(model, task.tokens[0], {hook: sae})
        >>> target = LogitTarget((int(task.right[0, 0]),), (int(task.wrong[0, 0]),))
        >>> result = ablate(frozen, [Part("head", 3, 5, head=0)], target)
        >>> result.after.shape  # logits, [vocabulary]
        torch.Size([4096])
        >>> len(result.tokens(3))  # the likeliest tokens, before and after
        3
    """
    if not parts:
        raise ConfigError("nothing is to be ablated; name a feature, a head, an MLP or an error")
    by_hook: dict[str, list[Part]] = {}
    for part in parts:
        by_hook.setdefault(_hook(frozen, part), []).append(part)
    saes = dict(frozen.saes.values())

    def without(x: Tensor, name: str) -> Tensor:
        return _without(x, by_hook[name], saes.get(name))

    position = frozen.at(target.position)
    with frozen.model.hooks(dict.fromkeys(by_hook, without)):
        after = frozen.model(frozen.tokens)[0, position].double()
    return AblationResult(tuple(parts), frozen.logits[position], after, target)


def random_parts(frozen: FrozenPass, parts: Sequence[Part], generator: np.random.Generator) -> list[Part]:
    """A control for `ablate`: each head becomes another of its layer, each feature another that is active at its position.

    Those named by `parts` are not drawn, nor is one drawn twice. MLPs, errors, and parts without others to draw are left out.
    """
    taken, drawn = set(parts), []
    for part in parts:
        others: list[Part] = []
        if part.kind == "head":
            others = [replace(part, head=head) for head in range(frozen.model.cfg.n_heads)]
        elif part.kind == "feature" and part.layer in frozen.saes:
            active = frozen.decomposed(part.layer, part.position)[0].nonzero()[:, 0].tolist()
            others = [replace(part, feature=feature) for feature in active]
        others = [other for other in others if other not in taken]
        if others:
            drawn.append(others[int(generator.integers(len(others)))])
            taken.add(drawn[-1])
    return drawn


def _hook(frozen: FrozenPass, part: Part) -> str:
    """Where a part can be taken out; raises when it is not there."""
    cfg = frozen.model.cfg
    frozen.model.layer(part.layer)
    frozen.at(part.position)
    if part.kind in ("feature", "error"):
        if part.layer not in frozen.saes:
            raise ConfigError(f"layer {part.layer} has no autoencoder, so '{part.id}' cannot be taken out")
        hook, sae = frozen.saes[part.layer]
        if part.kind == "feature":
            check_feature(sae, part.feature)
        return hook
    if part.kind == "head":
        if not 0 <= part.head < cfg.n_heads:
            raise LayerRangeError(
                f"head {part.head} is out of range; {frozen.model.name} has heads 0–{cfg.n_heads - 1}"
            )
        return f"blocks.{part.layer}.attn.hook_z"
    if part.kind == "mlp":
        return f"blocks.{part.layer}.hook_mlp_out"
    raise ConfigError(f"'{part.id}' cannot be taken out; choose one of {', '.join(KINDS)}")


def _without(x: Tensor, parts: Sequence[Part], sae: SAE | None) -> Tensor:
    """A copy of an activation [1, T, …] with parts of it gone; coefficients are those of the run as it comes in."""
    new = x.clone()
    split = decompose(sae, x) if sae is not None else None
    for part in sorted(parts, key=lambda p: p.kind == "head"):  # a head set to zero stays zero
        if part.kind == "head":
            new[:, part.position, part.head] = 0
        elif part.kind == "mlp":
            new[:, part.position] = 0
        else:
            assert sae is not None
            assert split is not None
            gone = split.error[:, part.position]
            if part.kind == "feature":
                gone = split.coefficients[:, part.position, part.feature, None] * sae.W_dec[part.feature].to(x.dtype)
            new[:, part.position] -= gone.reshape(new[:, part.position].shape)
    return new

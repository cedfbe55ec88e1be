"""What a head does for an answer, by where it looks and what it writes there (after Wang et al. 2022, arXiv 2211.00593).

A logit difference alone does not tell a head that writes the right name from one that unwrites the wrong one. So what
each head adds to the right and to the wrong answer's logit stands apart, beside its attention from the answer's position
to the prompt's named positions (roles). In IOI three kinds of heads follow *(rule and thresholds ours)*:

- name mover: looks at IO, and adds to its logit, more than to S's (both intervals above 0: a head that raises every name
  alike moves none);
- negative: looks at IO or S1, and takes from the logit of the name it looks at, more than from the other's;
- S-inhibition: looks at S2 most of all. "direct" where it takes from S's own logit, more than from IO's; a "candidate" where
  it does not: then what it does passes through other heads, and direct attribution cannot confirm it; path patching can.

Labels rest on intervals over prompts: below eight there are none, and no label but the candidates'.

"Looks at" means at least LOOKS of its attention, in the mean over prompts, and more than at any other role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attlas.data.stats import bootstrap_mean

LOOKS = 0.2


@dataclass(frozen=True)
class HeadRole:
    """Where one head looks from the answer's position, and what that makes it.

    Attributes:
        looks_at: the role with most of its attention, "" below LOOKS.
        attention: its mean attention to that role (to the strongest, below LOOKS).
        label: name mover, negative, direct S-inhibition, S-inhibition candidate, or "".
    """

    looks_at: str
    attention: float
    label: str


def head_role(
    task: str, attention: Mapping[str, np.ndarray], right: np.ndarray, wrong: np.ndarray, seed: int = 0
) -> HeadRole:
    """Role of one head.

    Args:
        task: name of the task; only "ioi" has labels.
        attention: role → [n_prompts], attention from the answer's position.
        right, wrong: [n_prompts], what it adds to the logits of the right and the wrong answer.
    """
    if not attention:
        return HeadRole("", float("nan"), "")
    means = {role: float(values.mean()) for role, values in attention.items()}
    role = max(means, key=lambda name: means[name])
    if means[role] < LOOKS:
        return HeadRole("", means[role], "")
    return HeadRole(role, means[role], _label(role, right, wrong, seed) if task == "ioi" else "")


def _label(role: str, right: np.ndarray, wrong: np.ndarray, seed: int) -> str:
    sides = {"IO": (right, wrong), "S1": (wrong, right), "S2": (wrong, right)}.get(role)
    if sides is None:
        return ""
    own, other = sides  # the logits of the name it looks at, and of the other one
    _, low, high = bootstrap_mean(np.stack([own, own - other], 1), seed=seed)
    takes = bool((high < 0).all())
    if role == "S2":
        return "direct S-inhibition" if takes else "S-inhibition candidate"
    if role == "IO" and bool((low > 0).all()):
        return "name mover"
    return "negative" if takes else ""

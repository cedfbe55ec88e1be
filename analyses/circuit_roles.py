"""What a head does for an answer, by where it looks and what it writes there (after Wang et al. 2022, arXiv 2211.00593).

A logit difference alone does not tell a head that writes the right name from one that unwrites the wrong one. So what
each head adds to the right and to the wrong answer's logit stands apart, beside its attention from the answer's position
to the prompt's named positions (roles). In IOI three kinds of heads follow *(rule and thresholds ours)*:

- name mover: looks at IO, and adds to the right answer's logit (interval above 0);
- negative: looks at IO or S, and takes from the logit of the name it looks at (interval below 0);
- S-inhibition candidate: looks at S2 most of all. What it does passes through other heads, so direct attribution cannot
  confirm it; path patching can.

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
        label: name mover, negative, S-inhibition candidate, or "".
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
    written = {"IO": right, "S1": wrong, "S2": wrong}.get(role)
    if written is None:
        return ""
    _, low, high = bootstrap_mean(written, seed=seed)
    if role == "IO" and low > 0:
        return "name mover"
    if high < 0 and role != "S2":
        return "negative"
    return "S-inhibition candidate" if role == "S2" else ""

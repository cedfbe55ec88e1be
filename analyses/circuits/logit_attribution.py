"""Direct logit attribution: what each component, head or feature adds to the answer's logit difference by itself.

What a part adds to the right answer's logit and to the wrong one's stands apart: the difference of the two does not say
which name a head writes (see circuit_roles). The final norm's scale is frozen at the value it has in the run, so the
logit difference is linear in the residual stream and the parts add up to it (Elhage et al. 2021, "A mathematical
framework for transformer circuits"). The logit lens (nostalgebraist 2020) is the same sum cut off after each layer, with
that same frozen scale *(ours)*: it shows how the final answer is put together, not what a model cut there would say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from attlas.analyses.circuits.config import DLAConfig
from attlas.analyses.circuits.frozen import FrozenPass, Part
from attlas.analyses.circuits.roles import HeadRole, head_role
from attlas.analyses.circuits.terms import IN_FLOAT32, TOLERANCE
from attlas.analyses.common.columns import HEAD, LAYER, N_PROMPTS, interval
from attlas.analyses.tasks.task import Task
from attlas.data.figures import new_figure
from attlas.data.progress import Track, no_track
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean
from attlas.errors import ConfigError, ConservationError
from attlas.interp import AnyModel, as_hooked
from attlas.saes.decompose import SAEs

_INTERVAL = (
    *interval("logits", "prompts"),
    N_PROMPTS,
)
DLA = TableSchema(
    "dla",
    "one component, head or feature",
    (
        column("name", pa.string(), "", "what it is, such as head 3.0 or feature 2/831"),
        column("kind", pa.string(), "", "embed, position, attention, head, feature, error, mlp, bias"),
        column("layer", pa.int16(), "", "layer index; −1 for embeddings and the final norm's bias"),
        column("head", pa.int16(), "", "head index; −1 for none"),
        column("feature", pa.int32(), "", "SAE feature; −1 for none"),
        column("contribution", pa.float64(), "logits", "mean over prompts of its part of the logit difference"),
        *_INTERVAL,
        column("right", pa.float64(), "logits", "mean over prompts of its part of the right answers' logit"),
        column("right_low", pa.float64(), "logits", "95 % bootstrap interval over prompts, lower end"),
        column("right_high", pa.float64(), "logits", "95 % bootstrap interval over prompts, upper end"),
        column("wrong", pa.float64(), "logits", "the same of the wrong answers' logit; null where a prompt has none"),
        column("wrong_low", pa.float64(), "logits", "95 % bootstrap interval over prompts, lower end"),
        column("wrong_high", pa.float64(), "logits", "95 % bootstrap interval over prompts, upper end"),
        column("looks_at", pa.string(), "", "role of the prompt with most of the head's attention, where at least 0.2"),
        column("attention", pa.float64(), "fraction", "that attention, mean over prompts; null without roles"),
        column("label", pa.string(), "", "ioi: name mover, negative, direct S-inhibition, S-inhibition candidate"),
    ),
)
ROLES = TableSchema(
    "head_roles",
    "one head and one named position of the prompts",
    (
        LAYER,
        HEAD,
        column("role", pa.string(), "", "named position, such as IO, S1 or S2"),
        column("attention", pa.float64(), "fraction", "attention to it from the answer's position, mean over prompts"),
        *interval("fraction", "prompts"),
        N_PROMPTS,
    ),
)
LENS = TableSchema(
    "logit_lens",
    "the residual stream after one layer",
    (
        column("layer", pa.int16(), "", "layers done; 0 is the embeddings alone"),
        column("value", pa.float64(), "logits", "logit difference read there, the final norm's scale frozen"),
        *_INTERVAL,
    ),
)
SCHEMAS = (DLA, LENS, ROLES)


@dataclass(frozen=True)
class DLAResult(Result):
    """Contributions at the answer's position.

    Attributes:
        parts: m components (their position is −1: each prompt's own).
        contributions: float64 [n_prompts, m], logits; a feature that is not active adds 0.
        right, wrong: the same of the right and the wrong answers' logit alone; contributions is their difference.
        lens: float64 [n_prompts, n_layers + 1], logits.
        values: the model's logit difference, float64 [n_prompts].
        gap: largest |Σ contributions − value| over prompts, logits.
        task: its name.
        attention: role → float64 [n_prompts, n_layers, n_heads], attention from the answer's position.
    """

    kind: ClassVar[str] = "dla"

    parts: tuple[Part, ...]
    contributions: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    lens: np.ndarray
    values: np.ndarray
    gap: float
    config: DLAConfig
    task: str
    attention: dict[str, np.ndarray]

    def ranking(self, n: int = 10) -> list[tuple[str, float]]:
        """(name, mean contribution), the largest by size first."""
        mean = self.contributions.mean(0)
        return [(name_of(self.parts[i]), float(mean[i])) for i in np.argsort(-np.abs(mean))[:n]]

    def table(self) -> pa.Table:
        """Table dla."""
        mean, low, high = bootstrap_mean(self.contributions, seed=self.config.seed)
        apart = {
            f"{side}{end}": values
            for side, each in (("right", self.right), ("wrong", self.wrong))
            for end, values in zip(("", "_low", "_high"), bootstrap_mean(each, seed=self.config.seed), strict=True)
        }
        rows = []
        for i, (part, role) in enumerate(zip(self.parts, self.roles, strict=True)):
            row = {"name": name_of(part), "kind": part.kind, "layer": part.layer, "head": part.head}
            numbers: dict[str, float | None] = {
                "contribution": float(mean[i]),
                "low": float(low[i]),
                "high": float(high[i]),
            }
            numbers |= {name: None if np.isnan(values[i]) else float(values[i]) for name, values in apart.items()}
            place = {"looks_at": role.looks_at, "label": role.label}
            attention = None if np.isnan(role.attention) else role.attention
            row |= {"feature": part.feature, **numbers, **place, "attention": attention}
            rows.append({**row, "n_prompts": len(self.values)})
        return DLA.table(rows)

    @cached_property
    def roles(self) -> list[HeadRole]:
        """Of each part: where the head looks from the answer's position, and its label; empty for what is no head."""
        found = []
        for i, part in enumerate(self.parts):
            of_head = self.attention if part.kind == "head" else {}
            looks = {role: values[:, part.layer, part.head] for role, values in of_head.items()}
            found.append(head_role(self.task, looks, self.right[:, i], self.wrong[:, i], self.config.seed))
        return found

    def labels(self) -> dict[str, list[str]]:
        """Label → names of the heads that have it; only by "head" on ioi."""
        found: dict[str, list[str]] = {}
        for part, role in zip(self.parts, self.roles, strict=True):
            if role.label:
                found.setdefault(role.label, []).append(name_of(part))
        return found

    def roles_table(self) -> pa.Table:
        """Table head_roles."""
        rows = []
        for role, values in self.attention.items():
            mean, low, high = bootstrap_mean(values, seed=self.config.seed)
            for layer, head in np.ndindex(*mean.shape):
                numbers = {"attention": mean[layer, head], "low": low[layer, head], "high": high[layer, head]}
                at = {"layer": layer, "head": head, "role": role, "n_prompts": len(values)}
                rows.append(at | {name: float(value) for name, value in numbers.items()})
        return ROLES.table(rows)

    def lens_table(self) -> pa.Table:
        """Table logit_lens."""
        mean, low, high = bootstrap_mean(self.lens, seed=self.config.seed)
        return LENS.table(
            [
                {
                    "layer": layer,
                    "value": float(mean[layer]),
                    "low": float(low[layer]),
                    "high": float(high[layer]),
                    "n_prompts": len(self.values),
                }
                for layer in range(self.lens.shape[1])
            ]
        )

    def tables(self) -> dict[str, pa.Table]:
        return {"dla": self.table(), "logit_lens": self.lens_table(), "head_roles": self.roles_table()}

    def plot(self, n: int = 20) -> Any:
        """The largest contributions with their intervals; by head, a heatmap layer × head."""
        import plotly.graph_objects as go

        heads = [p for p in self.parts if p.kind == "head"]
        mean, low, high = bootstrap_mean(self.contributions, seed=self.config.seed)
        if self.config.by == "head":
            grid = np.zeros((1 + max(p.layer for p in heads), 1 + max(p.head for p in heads)))
            for part, value in zip(self.parts, mean, strict=True):
                if part.kind == "head":
                    grid[part.layer, part.head] = value
            figure = new_figure(go.Heatmap(z=grid, zmid=0, colorbar={"title": "logits"}))
            figure.update_layout(title="Direct logit attribution by head", xaxis_title="head", yaxis_title="layer")
            return figure
        order = np.argsort(-np.abs(mean))[:n][::-1]
        error = {"type": "data", "array": (high - mean)[order], "arrayminus": (mean - low)[order]}
        names = [name_of(self.parts[i]) for i in order]
        figure = new_figure(go.Bar(x=mean[order], y=names, orientation="h", error_x=error))
        figure.update_layout(title="Direct logit attribution", xaxis_title="logits")
        return figure

    def plot_lens(self) -> Any:
        """The logit difference as it is put together, layer by layer."""
        import plotly.graph_objects as go

        mean, low, high = bootstrap_mean(self.lens, seed=self.config.seed)
        error = {"type": "data", "array": high - mean, "arrayminus": mean - low}
        figure = new_figure(go.Scatter(y=mean, error_y=error, mode="lines+markers"))
        figure.update_layout(
            title="Logit lens, the final norm frozen", xaxis_title="layers done", yaxis_title="logit difference"
        )
        return figure

    def summary(self) -> dict[str, Any]:
        """Headline numbers."""
        return {
            "logit_difference": float(self.values.mean()),
            "unit": "logits",
            "n_prompts": len(self.values),
            "gap": self.gap,
            "strongest": self.ranking(5),
            "labels": self.labels(),
        }


def name_of(part: Part) -> str:
    """A part's name without its position."""
    return part.id.rsplit(" @", 1)[0]


def answers(task: Task, row: int) -> tuple[int, list[int], list[int]]:
    """(position, right ids, wrong ids) of one prompt."""
    right, wrong = ([int(i) for i in ids[row] if i >= 0] for ids in (task.right, task.wrong))
    return int(task.positions[row]), right, wrong


def strongest_head(
    frozen: FrozenPass,
    position: int,
    right: list[int],
    wrong: list[int],
    layer: int | None = None,
    head: int | None = None,
) -> tuple[int, int, float]:
    """The head that adds most to one prompt's logit difference, directly.

    Args:
        layer, head: look among the heads of this layer, or of this index, alone.

    Returns: (layer, head, its part in logits).
    """
    covector = frozen.logit_covector(position, right, wrong)[0]
    whole = FrozenPass(frozen.model, frozen.tokens) if frozen.saes else frozen  # in heads, not in features
    parts, vectors = whole.parts(position, frozen.model.cfg.n_layers)
    coefficients = (vectors @ covector).tolist()
    able = [
        (amount, part.layer, part.head)
        for part, amount in zip(parts, coefficients, strict=True)
        if part.kind == "head" and layer in (None, part.layer) and head in (None, part.head)
    ]
    amount, of_layer, of_head = max(able)
    return of_layer, of_head, amount


def dla(
    model: AnyModel,
    task: Task,
    config: DLAConfig | None = None,
    *,
    saes: SAEs | None = None,
    track: Track = no_track,
) -> DLAResult:
    """Split each clean prompt's logit difference (mean right − mean wrong logit) into what wrote it.

    Raises:
        ConservationError: the parts do not add up to the model's own logits to 1e-4 of their size.
        ConfigError: by "feature" without SAEs.

    Example:
        >>> from attlas.analyses.circuits import dla
        >>> result = dla(model, task)
        >>> result.contributions.shape == (len(task), len(result.parts))  # logits
        True
        >>> sorted(result.tables())
        ['dla', 'head_roles', 'logit_lens']
    """
    model = as_hooked(model)
    config = config or DLAConfig()
    if config.by == "feature" and not saes:
        raise ConfigError("attribution to features needs SAEs; give saes={hook: sae}, or use by='head'")
    found: list[dict[Part, np.ndarray]] = []
    lens, values, gap = [], [], 0.0
    attention: dict[str, list[np.ndarray]] = {role: [] for role in task.roles}
    for row in track(range(len(task)), "direct logit attribution"):
        frozen = FrozenPass(model, task.tokens[row], saes if config.by == "feature" else None)
        position, right, wrong = answers(task, row)
        covector, constant, value = frozen.logit_covector(position, right, wrong)
        parts, vectors = frozen.parts(position, model.cfg.n_layers)
        coefficients = vectors @ covector
        sides = [frozen.logit_covector(position, ids, [])[:2] if ids else None for ids in (right, wrong)]
        apart = [coefficients.new_full(coefficients.shape, torch.nan) if s is None else vectors @ s[0] for s in sides]
        last = [float("nan") if s is None else s[1] for s in sides]
        for role, at in task.roles.items():
            attention[role].append(frozen.attention_to(position, int(at[row])).cpu().numpy())
        layers = np.array([part.layer for part in parts])
        lens.append([float(coefficients[layers < layer].sum()) + constant for layer in range(model.cfg.n_layers + 1)])
        gap = max(
            gap, check_sum(float(coefficients.sum()) + constant, value, float(coefficients.abs().sum()), "the logits")
        )
        sums: dict[Part, np.ndarray] = {}
        for part, three in zip(parts, torch.stack([coefficients, *apart], 1).cpu().numpy(), strict=True):
            key = _key(part, config.by)
            sums[key] = sums.get(key, np.zeros(3)) + three
        sums[Part("bias", -1, -1)] = np.array([constant, *last])
        found.append(sums)
        values.append(value)
    names = tuple(sorted({part for sums in found for part in sums}, key=lambda p: (p.layer, p.kind, p.head, p.feature)))
    table = np.array([[sums.get(part, np.zeros(3)) for part in names] for sums in found])
    return DLAResult(
        parts=names,
        contributions=table[..., 0],
        right=table[..., 1],
        wrong=table[..., 2],
        lens=np.array(lens),
        values=np.array(values),
        gap=gap,
        config=config,
        task=task.name,
        attention={role: np.stack(rows).astype(np.float64) for role, rows in attention.items()},
    )


def _key(part: Part, by: str) -> Part:
    """The component a part is counted under."""
    if by == "component" and part.kind in ("head", "bias"):
        return Part("attention", part.layer, -1)
    return Part(part.kind, part.layer, -1, part.head, part.feature)


def check_sum(total: float, value: float, size: float, what: str) -> float:
    """|total − value|, when it is within 1e-4 of the value, or within float32's reach of the parts' sizes.

    Raises:
        ConservationError: it is larger; says both.
    """
    gap = abs(total - value)
    if not gap <= max(TOLERANCE * abs(value), 1e-6 * size, 1e-6):
        raise ConservationError(f"the parts of {what} add up to {total:.6g}, not {value:.6g}; {IN_FLOAT32}")
    return gap

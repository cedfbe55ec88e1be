"""The bookkeeping of a trace: which nodes are open, what has reached them, what was cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.analyses.circuits.config import TraceConfig
from attlas.analyses.circuits.frozen import FrozenPass, Part
from attlas.analyses.circuits.nodes import Edge, Node
from attlas.analyses.circuits.terms import (
    FeatureTarget,
    LogitTarget,
    Terms,
    attention_terms,
    check,
    feature_row,
    logit_terms,
)
from attlas.errors import ConfigError

FOLLOWED = ("feature", "head")


@dataclass
class _Open:
    """A node that may be explained: what is known of it so far.

    Attributes:
        influence: on the target, over the edges kept.
        slope: features: ∂target/∂activation over them.
        covector: heads: the same, on what the head writes, [d_model].
    """

    part: Part
    value: float
    depth: int
    influence: float = 0.0
    slope: float = 0.0
    covector: Tensor | None = None


class Tracer:
    """Nodes are explained from the last layer to the first, so that all a node feeds is known when its turn comes."""

    def __init__(self, frozen: FrozenPass, config: TraceConfig) -> None:
        self.frozen = frozen
        self.config = config
        self.open: dict[str, _Open] = {}
        self.done: dict[str, float] = {}  # id → gap
        self.extra: list[Node] = []  # constants and remainders
        self.edges: list[Edge] = []
        self.root: Node | None = None
        self.scale = 1.0
        self.n_refused = 0

    def start(self, target: LogitTarget | FeatureTarget) -> None:
        """Explain the target itself."""
        last = self.frozen.model.cfg.n_layers
        if isinstance(target, LogitTarget):
            terms = logit_terms(self.frozen, target)
            position = self.frozen.at(target.position)
            self.root = Node("logits", "logits", last, position, value=terms.value, influence=terms.value)
            self.scale = abs(terms.value) or 1.0
            self._keep(terms, "logits", 1.0, 0, check(terms, "the logits"))
            return
        position = self.frozen.at(target.position)
        part = Part("feature", target.layer, position, feature=target.feature)
        row, constant, value = feature_row(self.frozen, target.layer, target.feature, position)
        if not self._active(part):
            raise ConfigError(
                f"feature {target.feature} of layer {target.layer} is not active at position {position} "
                f"(pre-activation {value:.3g}): there is nothing to explain"
            )
        self.root = Node(
            part.id, "feature", target.layer, position, feature=target.feature, value=value, influence=value
        )
        self.scale = abs(value)
        terms = attention_terms(self.frozen, target.layer, position, row, value, constant)
        self._keep(terms, part.id, 1.0, 0, check(terms, part.id))

    def _active(self, part: Part) -> bool:
        return float(self.frozen.decomposed(part.layer, part.position)[0][part.feature]) > 0

    def explain_layer(self, layer: int) -> None:
        """Explain every open feature and head of a layer."""
        for id, node in list(self.open.items()):
            if node.part.layer != layer or node.part.kind not in FOLLOWED:
                continue
            if abs(node.influence) < self.config.threshold * self.scale:
                continue
            if self.config.depth and node.depth >= self.config.depth:
                continue
            terms, factor = self._terms(node)
            self._keep(terms, id, factor, node.depth, check(terms, id))

    def _terms(self, node: _Open) -> tuple[Terms, float]:
        """(terms, ∂target/∂node) of a feature or a head."""
        part = node.part
        if part.kind == "feature":
            row, constant, value = feature_row(self.frozen, part.layer, part.feature, part.position)
            return attention_terms(self.frozen, part.layer, part.position, row, value, constant), node.slope
        assert node.covector is not None
        W_O = self.frozen.written(part.layer, part.position)[0]
        row = torch.zeros(W_O.shape[:2], dtype=torch.float64)
        row[part.head] = W_O[part.head] @ node.covector
        return attention_terms(self.frozen, part.layer, part.position, row, node.influence, 0.0), 1.0

    def _keep(self, terms: Terms, id: str, factor: float, depth: int, gap: float) -> None:
        """Add the terms worth keeping; the rest becomes one remainder node."""
        self.done[id] = gap
        influence = terms.weights * factor
        order = influence.abs().argsort(descending=True).tolist()
        large = [i for i in order[: self.config.top_n] if abs(influence[i]) >= self.config.threshold * self.scale]
        kept = []
        for i in large:
            if terms.parts[i].id not in self.open and len(self.open) >= self.config.max_nodes - 2:
                self.n_refused += 1
                continue
            kept.append(i)
            self._add(terms, i, id, factor, depth)
        rest = torch.ones(len(order), dtype=torch.bool)
        rest[kept] = False
        constant = Node(
            f"constant of {id}", "constant", -1, -1, value=terms.constant, influence=terms.constant * factor
        )
        weight = float(terms.weights[rest].sum())
        remainder = Node(
            f"remainder of {id}",
            "remainder",
            -1,
            -1,
            value=weight,
            influence=weight * factor,
            n_terms=int(rest.sum()),
            cut=float(influence[rest].abs().sum()),
        )
        for node in (constant, remainder):
            if node.value or node.n_terms:
                self.extra.append(node)
                self.edges.append(Edge(node.id, id, node.value, node.influence))

    def _add(self, terms: Terms, i: int, id: str, factor: float, depth: int) -> None:
        part, weight = terms.parts[i], float(terms.weights[i])
        loadings = () if terms.loadings is None else tuple(terms.loadings[i].tolist())
        self.edges.append(Edge(part.id, id, weight, weight * factor, loadings if any(loadings) else ()))
        if part.id not in self.open:
            self.open[part.id] = _Open(part, self._value(part), depth + 1)
        node = self.open[part.id]
        node.influence += weight * factor
        if part.kind == "feature":
            node.slope += weight * factor / node.value
        elif part.kind == "head":
            read = terms.reads[:, part.position - terms.first].sum(0) * factor
            node.covector = read if node.covector is None else node.covector + read

    def _value(self, part: Part) -> float:
        if part.kind != "feature":
            return 0.0
        # In units of activation, as features are explained: what a token's normalisation restores is in the slope.
        return feature_row(self.frozen, part.layer, part.feature, part.position)[2]

    def finish(self) -> tuple[list[Node], list[Edge]]:
        """All nodes, the target first, then by layer from the last, and all edges."""
        assert self.root is not None
        root = Node(**{**vars(self.root), "followed": True, "gap": self.done[self.root.id]})
        nodes = []
        for id, node in self.open.items():
            part = node.part
            value = node.value if part.kind == "feature" else node.influence
            nodes.append(
                Node(
                    id,
                    part.kind,
                    part.layer,
                    part.position,
                    part.head,
                    part.feature,
                    value,
                    node.influence,
                    id in self.done,
                    self.done.get(id),
                )
            )
        nodes.sort(key=lambda n: (-n.layer, n.position, n.id))
        return [root, *nodes, *self.extra], self.edges

"""The other half of a circuit: what made its heads attend where they attended.

A trace holds patterns fixed, so it says what was moved and not why. Here the attention entries that carry much of a
traced graph are split by QK attribution, and the terms that set their source apart from the other sources join the graph
by "key" and "query" edges. These are parts of scores, not of the target: they take no part in its sums.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.analyses.circuits.frozen import FrozenPass, Part
from attlas.analyses.circuits.graph import CircuitGraph
from attlas.analyses.circuits.nodes import Edge, Node
from attlas.analyses.circuits.qk import projected, seen_by
from attlas.analyses.circuits.terms import feature_row
from attlas.errors import ConfigError, require_counts

Entry = tuple[int, int, int, int]  # layer, head, dest, src


@dataclass(frozen=True)
class AttentionConfig:
    """Which entries are explained, and by how many terms.

    Attributes:
        share: an entry is explained when it carries at least this share of the target.
        top_n: terms kept of each side of an entry.
        least: a term is kept when it makes up at least this share of (score − mean score).
        steps: how far back: terms that are heads or features may have their own attention explained.
    """

    share: float = 0.1
    top_n: int = 4
    least: float = 0.05
    steps: int = 2

    def __post_init__(self) -> None:
        for name in ("share", "least"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie between 0 and 1")
        require_counts(self, "top_n", "steps")


def entries(graph: CircuitGraph) -> dict[Entry, float]:
    """(layer, head, dest, src) → how much of the target flows through that attention entry, the largest by size first."""
    by_id = {node.id: node for node in graph.nodes}
    found: dict[Entry, float] = {}
    for edge in graph.edges:
        source, target = by_id[edge.source], by_id[edge.target]
        if edge.via != "value" or target.kind not in ("head", "feature") or source.position < 0 or not edge.weight:
            continue
        for head, loading in enumerate(edge.loadings):
            if loading:
                key = (target.layer, head, target.position, source.position)
                found[key] = found.get(key, 0.0) + loading * edge.influence / edge.weight
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


@torch.no_grad()
def score_terms(frozen: FrozenPass, entry: Entry) -> dict[str, list[tuple[Part, float]]]:
    """Both sides of (score at src − mean score over the sources seen), "key" and "query", the largest first.

    Keys: each term at the source, less what terms of its name bring elsewhere on average. Queries: each term at the
    destination, against the difference of the whole keys. Each side sums to the difference.
    """
    layer, head, dest, src = entry
    scale = frozen.model.layers[layer].scale
    query_parts, queries = projected(frozen, layer, head, dest, "q")
    query = queries.sum(0)
    sources = seen_by(frozen, layer, dest)
    by_name: dict[tuple[str, int, int, int], float] = {}
    whole: dict[int, Tensor] = {}
    for position in sources:
        parts, keys = projected(frozen, layer, head, position, "k")
        whole[position] = keys.sum(0)
        share = (1.0 if position == src else 0.0) - 1.0 / len(sources)
        for part, value in zip(parts, (keys @ query * scale).tolist(), strict=True):
            name = (part.kind, part.layer, part.head, part.feature)
            by_name[name] = by_name.get(name, 0.0) + share * value
    difference = whole[src] - torch.stack(list(whole.values())).mean(0)
    key_side = [(Part(kind, at, src, h, f), value) for (kind, at, h, f), value in by_name.items()]
    query_side = list(zip(query_parts, (queries @ difference * scale).tolist(), strict=True))
    return {
        "key": sorted(key_side, key=lambda item: -abs(item[1])),
        "query": sorted(query_side, key=lambda item: -abs(item[1])),
    }


def explain_attention(frozen: FrozenPass, graph: CircuitGraph, config: AttentionConfig | None = None) -> CircuitGraph:
    """The graph with key and query edges into the heads and features that carry much of it.

    Args:
        frozen: the pass the graph was traced on.

    Example:
        >>> from attlas.analyses.circuits import FrozenPass, LogitTarget, explain_attention, trace
        >>> frozen = FrozenPass(model, task.tokens[0])
        >>> target = LogitTarget((int(task.right[0, 0]),))
        >>> graph = trace(model, task.tokens[0], target, frozen=frozen)
        >>> full = explain_attention(frozen, graph)
        >>> len(full.edges) > len(graph.edges)
        True
    """
    config = config or AttentionConfig()
    if graph.tokens != tuple(int(i) for i in frozen.tokens[0]):
        raise ConfigError("the graph was traced on another prompt than this pass; trace it again")
    scale = abs(graph.nodes[0].value) or 1.0
    nodes = {node.id: node for node in graph.nodes}
    edges = list(graph.edges)
    todo = [entry for entry, mass in entries(graph).items() if abs(mass) >= config.share * scale]
    seen: set[Entry] = set()
    for _ in range(config.steps):
        new: list[Entry] = []
        for entry in todo:
            if entry in seen:
                continue
            seen.add(entry)
            for part, edge in _edges(frozen, entry, nodes, config):
                edges.append(edge)
                nodes.setdefault(edge.source, _node(frozen, part))
                if part.kind == "head":
                    new.append(_strongest(frozen, part))
        todo = new
    settings = {**graph.settings, "attention": dataclasses.asdict(config)}
    return dataclasses.replace(graph, nodes=tuple(nodes.values()), edges=tuple(edges), settings=settings)


def _edges(
    frozen: FrozenPass, entry: Entry, nodes: dict[str, Node], config: AttentionConfig
) -> list[tuple[Part, Edge]]:
    """Key and query edges of one attention entry, into the node that reads by it."""
    layer, head, dest, _ = entry
    reader = Part("head", layer, dest, head=head).id
    targets = (
        [reader]
        if reader in nodes
        else [
            n.id
            for n in nodes.values()
            if n.kind == "feature" and (n.layer, n.position) == (layer, dest) and n.followed
        ]
    )
    found = []
    for via, terms in score_terms(frozen, entry).items():
        total = sum(value for _, value in terms)
        large = [t for t in terms if t[0].kind != "constant" and t[1] * total > 0]
        for part, value in large[: config.top_n]:
            if abs(value) >= config.least * abs(total):
                loadings = tuple(value if h == head else 0.0 for h in range(frozen.model.cfg.n_heads))
                found += [(part, Edge(part.id, target, value, 0.0, loadings, via)) for target in targets]
    return found


def _node(frozen: FrozenPass, part: Part) -> Node:
    value = 0.0
    if part.kind == "feature":
        value = feature_row(frozen, part.layer, part.feature, part.position)[2]
    return Node(part.id, part.kind, part.layer, part.position, part.head, part.feature, value)


def _strongest(frozen: FrozenPass, part: Part) -> Entry:
    """Where a head looks most from its position, by attention times the size of what is moved."""
    group = frozen.model.cfg.n_heads // frozen.model.cfg.n_kv_heads
    pattern = frozen.cache[f"blocks.{part.layer}.attn.hook_pattern"][part.head, part.position]
    v = frozen.cache[f"blocks.{part.layer}.attn.hook_v"][:, part.head // group].norm(dim=-1)
    return part.layer, part.head, part.position, int((pattern * v).argmax())

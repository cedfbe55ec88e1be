"""What the circuit page asks of a model; each function runs on the worker thread and gives plain values or results.

The numbers are those of attlas.analyses; nothing is computed here.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from attlas.analyses.circuits.ablation import ablate
from attlas.analyses.circuits.attention import explain_attention
from attlas.analyses.circuits.frozen import FrozenPass, parse_part
from attlas.analyses.circuits.qk import QKConfig, qk_attribution
from attlas.analyses.circuits.terms import LogitTarget, logit_terms
from attlas.analyses.circuits.tracing import FeatureTarget, TraceConfig, direct_attribution, trace
from attlas.dashboard.autoencoders import autoencoder
from attlas.dashboard.jobs import Job
from attlas.dashboard.pages.circuit.setup import Setup
from attlas.dashboard.reader import WorkspaceReader
from attlas.errors import PromptError

if TYPE_CHECKING:
    from attlas.analyses.circuits.frozen import FrozenPass
    from attlas.analyses.circuits.graph import CircuitGraph
    from attlas.analyses.circuits.terms import LogitTarget
    from attlas.interp import HookedModel

MAX_TOKENS = 96
CHIPS = 8  # features shown of a layer at a token
TERMS = 15  # terms shown of a feature


def frozen_pass(reader: WorkspaceReader, setup: Setup) -> tuple[HookedModel, FrozenPass, list[str]]:
    """(model, pass, warnings); the last pass is kept, for the page asks of it many times."""
    held: dict[str, Any] = reader.jobs.kept("circuit pass", dict)
    if held.get("key") == setup.key:
        return held["pass"]
    model = reader.jobs.model(setup.model)
    saes = {sae.cfg.hook_name: sae for run in setup.saes for sae in (autoencoder(reader, run),)}
    tokens = model.to_tokens(setup.text)
    if tokens.shape[1] > MAX_TOKENS:
        raise PromptError(f"the prompt has {tokens.shape[1]} tokens; this page takes at most {MAX_TOKENS}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frozen = FrozenPass(model, tokens, saes)
    notes = [str(w.message) for w in caught if w.category is UserWarning]
    held.clear()
    held.update({"key": setup.key, "pass": (model, frozen, notes)})
    return held["pass"]


def _target(frozen: FrozenPass, setup: Setup) -> LogitTarget:
    first, second = frozen.logits[-1].topk(2).indices.tolist()
    right = setup.right if setup.right is not None else first
    wrong = setup.wrong if setup.wrong is not None else (second if right == first else first)
    return LogitTarget((right,), (wrong,) if wrong >= 0 and wrong != right else ())


def prompt(reader: WorkspaceReader, setup: Setup, job: Job) -> dict[str, Any]:
    """Tokens, next tokens, and the strongest features of each layer at each token."""
    model, frozen, notes = frozen_pass(reader, setup)
    target = _target(frozen, setup)
    difference = logit_terms(frozen, target).value
    shares = frozen.logits[-1].softmax(-1)
    best = list(dict.fromkeys([*shares.topk(10).indices.tolist(), *target.right, *target.wrong]))
    layers = []
    for layer in job(sorted(frozen.saes), "encoding"):
        hook, sae = frozen.saes[layer]
        rows = [
            {"position": p, "feature": f, "activation": a}
            for p, found in enumerate(frozen.strongest(layer, CHIPS))
            for f, a in found
        ]
        layers.append({"layer": layer, "hook": hook, "hash": sae.hash, "features": rows})
    return {
        "tokens": frozen.str_tokens(),
        "next": [{"id": i, "token": _text(model, i), "probability": float(shares[i])} for i in best],
        "right": target.right[0],
        "wrong": target.wrong[0] if target.wrong else -1,
        "difference": difference,
        "layers": layers,
        "n_layers": model.cfg.n_layers,
        "n_heads": model.cfg.n_heads,
        "notes": notes,
    }


def _text(model: HookedModel, i: int) -> str:
    return model.to_str_tokens([i])[0] if model.tokenizer is not None else str(i)


def feature(reader: WorkspaceReader, setup: Setup, layer: int, index: int, position: int) -> dict[str, Any]:
    """A feature's DFA over heads and sources, and the terms of the residual streams it is made of."""
    model, frozen, _ = frozen_pass(reader, setup)
    dfa = direct_attribution(frozen, layer, index, position)
    config = TraceConfig(threshold=0, top_n=TERMS, depth=1)
    graph = trace(model, frozen.tokens, FeatureTarget(layer, index, position), config, frozen=frozen)
    terms = [{**vars(graph.node(e.source)), "weight": e.weight} for e in graph.into(graph.target)]
    return {
        "value": graph.nodes[0].value,
        "gap": graph.gap,
        "dfa": [
            {"head": h, "source": s, "dfa": value} for h, row in enumerate(dfa.tolist()) for s, value in enumerate(row)
        ],
        "terms": terms,
    }


def score(
    reader: WorkspaceReader, setup: Setup, layer: int | None, head: int | None, dest: int | None, src: int | None
) -> dict[str, Any]:
    """A head's pattern, and one of its scores in pairs of terms; by default where it looks most from the last token."""
    model, frozen, _ = frozen_pass(reader, setup)
    layer = model.cfg.n_layers - 1 if layer is None else layer
    head, dest = head or 0, frozen.n_positions - 1 if dest is None else dest
    config = QKConfig(layer, head, dest, 0)
    qk_attribution(model, frozen.tokens, config, frozen=frozen)  # refuses what is not there
    pattern = frozen.cache[f"blocks.{layer}.attn.hook_pattern"][head]
    if src is None:
        row = pattern[dest, : dest + 1]
        src = int(row[1:].argmax()) + 1 if len(row) > 1 else 0
    result = qk_attribution(model, frozen.tokens, QKConfig(layer, head, dest, src), frozen=frozen)
    return {
        "layer": layer,
        "head": head,
        "dest": dest,
        "src": src,
        "score": result.score,
        "sum": float(result.terms.sum()),
        "attention": result.pattern,
        "pattern": [
            {"dest": d, "src": s, "attention": float(pattern[d, s])}
            for d in range(frozen.n_positions)
            for s in range(d + 1)
        ],
        "pairs": result.table().to_pylist(),
        "sides": {w: [{"term": part.id, "score": v} for part, v in result.side(w)] for w in ("dest", "src")},
    }


def graph(
    reader: WorkspaceReader, setup: Setup, of: tuple[int, int, int] | None, threshold: float, attention: bool, job: Job
) -> CircuitGraph:
    """The trace of the logit difference, or of a feature (layer, index, position)."""
    model, frozen, _ = frozen_pass(reader, setup)
    target = FeatureTarget(*of) if of is not None else _target(frozen, setup)
    config = TraceConfig(threshold=threshold, top_n=10, max_nodes=120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph carries what it warns of
        found = trace(model, frozen.tokens, target, config, frozen=frozen, track=job)
    return explain_attention(frozen, found) if attention else found


def ablation(reader: WorkspaceReader, setup: Setup, ids: tuple[str, ...]) -> dict[str, Any]:
    """The logit difference and the likeliest tokens without some parts."""
    model, frozen, _ = frozen_pass(reader, setup)
    result = ablate(frozen, [parse_part(id) for id in ids], _target(frozen, setup))
    rows = [{"token": _text(model, row["id"]), **row} for row in result.tokens()]
    return {**result.summary(), "tokens": rows}

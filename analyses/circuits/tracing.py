"""Recursive direct feature attribution: from a logit difference or a feature back to the tokens, nothing lost.

A target is written as a sum over the terms of the residual stream it reads, with attention patterns and norm scales
frozen (Kissane et al. 2024, arXiv 2406.17759). Terms that are attention features, or heads where a layer has no
autoencoder, are written as such sums in turn; embeddings, MLPs, autoencoder errors and biases are ends. At every step
the terms must add up to what is explained, to 1e-4 of it; what is cut off stands in the graph as a remainder node.

A feature is explained once, however many nodes it feeds: its influence on the target is the sum over them. A head has
no amount of its own: what is explained is what it brings to the target *(ours)*.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict

import torch
from torch import Tensor

from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.graph import CircuitGraph
from attlas.analyses.circuits.terms import FeatureTarget, LogitTarget, direct_attribution
from attlas.analyses.circuits.tracer import TraceConfig, Tracer
from attlas.data.progress import Track, no_track
from attlas.interp import AnyModel, as_hooked
from attlas.saes.decompose import SAEs

__all__ = ["FeatureTarget", "LogitTarget", "TraceConfig", "direct_attribution", "trace"]


@torch.no_grad()
def trace(
    model: AnyModel,
    tokens: Tensor,
    target: LogitTarget | FeatureTarget,
    config: TraceConfig | None = None,
    *,
    saes: SAEs | None = None,
    frozen: FrozenPass | None = None,
    track: Track = no_track,
) -> CircuitGraph:
    """Trace a target back through the model.

    Args:
        model: a language model.
        tokens: one prompt, int64 [T] or [1, T].
        target: what to explain.
        saes: hook → autoencoder on attn.hook_z or hook_attn_out; layers without one are split into heads.
        frozen: the prompt's pass, when it is there already.

    Raises:
        ConservationError: at some step the terms do not add up to 1e-4.
        ConfigError: the target is not there; a feature that is not active has nothing to explain.

    Warns: when max_nodes was reached; says how many terms went to remainders.

    Example:
        >>> from attlas.analyses.circuits import LogitTarget, TraceConfig, trace
        >>> target = LogitTarget((int(task.right[0, 0]),), (int(task.wrong[0, 0]),))
        >>> graph = trace(model, task.tokens[0], target, TraceConfig(top_n=4), saes={hook: sae})
        >>> graph.nodes[0].kind, graph.gap < 1e-3
        ('logits', True)
    """
    model = as_hooked(model)
    config = config or TraceConfig()
    frozen = frozen or FrozenPass(model, tokens, saes)
    tracer = Tracer(frozen, config)
    tracer.start(target)
    for layer in track(range(model.cfg.n_layers - 1, -1, -1), "tracing"):
        tracer.explain_layer(layer)
    nodes, edges = tracer.finish()
    notes: tuple[str, ...] = ()
    if tracer.n_refused:
        notes = (
            f"the graph reached {config.max_nodes} nodes: {tracer.n_refused} more terms above the threshold are in the "
            "remainders; raise max_nodes or the threshold",
        )
        warnings.warn(notes[0], stacklevel=2)
    return CircuitGraph(
        target=nodes[0].id,
        nodes=tuple(nodes),
        edges=tuple(edges),
        tokens=tuple(int(i) for i in frozen.tokens[0]),
        token_text=tuple(frozen.str_tokens()),
        model=model.ref,
        saes={layer: sae.hash for layer, (_, sae) in sorted(frozen.saes.items())},
        settings={**asdict(config), "target": asdict(target)},
        warnings=notes,
        right=target.right if isinstance(target, LogitTarget) else (),
        wrong=target.wrong if isinstance(target, LogitTarget) else (),
    )

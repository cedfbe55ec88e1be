"""What a workspace may hold: one line a kind of run, in the order docs/workspace.md shows it."""

from __future__ import annotations

from attlas.analyses import (
    checkpoint_timeline,
    circuit_dla,
    circuit_faithfulness,
    circuit_graph,
    circuit_patching,
    circuit_qk,
    collapse_demo,
    cost_profile,
    entropy,
    entropy_log,
    feature_tables,
    head_effects,
    map_anatomy,
    prune,
    prune_heal,
    redundancy,
    selection_layers,
    vit,
    vit_pruning,
    vit_tokens,
    window_loss,
)
from attlas.data.schema import TableSchema
from attlas.saes import eval_schema, history, sweep

TABLES: dict[str, tuple[TableSchema, ...]] = {
    "sae": (history.TRAINING,),
    "sae_eval": (eval_schema.EVALUATION, eval_schema.DENSITY),
    "sae_sweep": (sweep.PARETO,),
    "features": feature_tables.SCHEMAS,
    "entropy": entropy.SCHEMAS,
    "tracker": entropy_log.SCHEMAS,
    "timeline": checkpoint_timeline.SCHEMAS,
    "anatomy": map_anatomy.SCHEMAS,
    "selection": selection_layers.SCHEMAS,
    "window_loss": window_loss.SCHEMAS,
    "cost": cost_profile.SCHEMAS,
    "collapse": collapse_demo.SCHEMAS,
    "redundancy": redundancy.SCHEMAS,
    "head_effects": head_effects.SCHEMAS,
    "drop_curve": prune.SCHEMAS,
    "patching": circuit_patching.SCHEMAS,
    "dla": circuit_dla.SCHEMAS,
    "circuit": circuit_graph.SCHEMAS,
    "qk": circuit_qk.SCHEMAS,
    "faithfulness": circuit_faithfulness.SCHEMAS,
    "prune": (*prune.SCHEMAS, *prune_heal.SCHEMAS),
    "vit": vit.SCHEMAS,
    "vit_pruning": vit_pruning.SCHEMAS,
    "vit_tokens": vit_tokens.SCHEMAS,
}

"""What a workspace may hold: one line a kind of run, in the order docs/workspace.md shows it."""

from __future__ import annotations

from attlas.analyses.attention import anatomy as map_anatomy
from attlas.analyses.attention import cost as cost_profile
from attlas.analyses.attention import head_entropy as entropy
from attlas.analyses.attention import head_timeline as checkpoint_timeline
from attlas.analyses.attention import selection as selection_layers
from attlas.analyses.attention import windows as window_loss
from attlas.analyses.circuits import activation_patching as circuit_patching
from attlas.analyses.circuits import logit_attribution as circuit_dla
from attlas.analyses.circuits import nodes as circuit_nodes
from attlas.analyses.circuits import qk as circuit_qk
from attlas.analyses.circuits import validation as circuit_faithfulness
from attlas.analyses.explain import tables as explanation_tables
from attlas.analyses.features import matching as sae_matching
from attlas.analyses.features import survey as head_survey
from attlas.analyses.features import tables as feature_tables
from attlas.analyses.heads import logits as head_logits
from attlas.analyses.heads import projection_tables as head_points
from attlas.analyses.heads import similar as head_similar
from attlas.analyses.heads import tables as head_tables
from attlas.analyses.heads import weight_tables as head_weight_tables
from attlas.analyses.pruning import curve as drop_curve
from attlas.analyses.pruning import pipeline as prune
from attlas.analyses.pruning.side_effects import report as side_effects
from attlas.analyses.redundancy import heads as head_effects
from attlas.analyses.redundancy import modules as module_effects
from attlas.analyses.redundancy import scores as redundancy
from attlas.analyses.redundancy import timeline as redundancy_timeline
from attlas.analyses.stability import collapse as collapse_demo
from attlas.analyses.stability import log as entropy_log
from attlas.analyses.steering import run as steering
from attlas.analyses.vit import heads as vit
from attlas.analyses.vit import pruning as vit_pruning
from attlas.analyses.vit.patterns import run as vit_patterns
from attlas.analyses.vit.tokens import run as vit_tokens
from attlas.data.schema import TableSchema
from attlas.saes.evaluation import tables as eval_schema
from attlas.saes.training import history, over_seeds, sweep

TABLES: dict[str, tuple[TableSchema, ...]] = {
    "sae": (history.TRAINING,),
    "sae_eval": (eval_schema.EVALUATION, eval_schema.DENSITY),
    "sae_sweep": (sweep.PARETO, history.SWEEP_TRAINING, over_seeds.SWEEP_SEEDS),
    "lorsa": (history.TRAINING,),
    "lorsa_eval": (eval_schema.EVALUATION,),
    "features": feature_tables.SCHEMAS,
    "head_survey": head_survey.SCHEMAS,
    "sae_matching": sae_matching.SCHEMAS,
    "explanations": explanation_tables.SCHEMAS,
    "heads": head_tables.SCHEMAS,
    "head_weights": head_weight_tables.SCHEMAS,
    "head_logits": head_logits.SCHEMAS,
    "head_similar": head_similar.SCHEMAS,
    "head_points": head_points.SCHEMAS,
    "entropy": entropy.SCHEMAS,
    "tracker": entropy_log.SCHEMAS,
    "timeline": checkpoint_timeline.SCHEMAS,
    "anatomy": map_anatomy.SCHEMAS,
    "selection": selection_layers.SCHEMAS,
    "window_loss": window_loss.SCHEMAS,
    "cost": cost_profile.SCHEMAS,
    "collapse": collapse_demo.SCHEMAS,
    "redundancy": redundancy.SCHEMAS,
    "redundancy_timeline": redundancy_timeline.SCHEMAS,
    "module_effects": module_effects.SCHEMAS,
    "head_effects": head_effects.SCHEMAS,
    "drop_curve": drop_curve.SCHEMAS,
    "what_dies": side_effects.SCHEMAS,
    "patching": circuit_patching.SCHEMAS,
    "dla": circuit_dla.SCHEMAS,
    "circuit": circuit_nodes.SCHEMAS,
    "qk": circuit_qk.SCHEMAS,
    "faithfulness": circuit_faithfulness.SCHEMAS,
    "prune": prune.SCHEMAS,
    "steering": steering.SCHEMAS,
    "vit": vit.SCHEMAS,
    "vit_patterns": vit_patterns.SCHEMAS,
    "vit_pruning": vit_pruning.SCHEMAS,
    "vit_tokens": vit_tokens.SCHEMAS,
}

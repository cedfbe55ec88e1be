"""Kinds of runs as people read them: a name, the page that shows them, the command that makes one, headline numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from attlas.dashboard.page import link
from attlas.data.workspace import Run


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        name: for people.
        path: the page that shows it.
        command: makes one.
        says: key of the summary → words before its value.
        query: parameters of the page besides the run.
    """

    name: str
    path: str
    command: str
    says: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)


_VIT = "attlas vit --model vit-mini"
_SAVED = {"view": "saved"}
KINDS = {
    "sae": Kind(
        "Autoencoder",
        "/training",
        "attlas train --hooks 'blocks.*.attn.hook_z'",
        {"hook": "", "arch": "", "d_sae": "features"},
    ),
    "sae_eval": Kind(
        "Evaluation",
        "/evaluation",
        "attlas eval",
        {"l0": "L0", "explained_variance": "explained variance", "ce_recovered": "CE recovered"},
    ),
    "sae_sweep": Kind("Sweep", "/training", "attlas train --sweep-k 8 16 32", {"n_saes": "autoencoders"}),
    "lorsa": Kind(
        "Lorsa",
        "/training",
        "attlas train --arch lorsa --layer 3",
        {"hook": "", "d_sae": "features", "n_qk_heads": "query–key heads"},
    ),
    "lorsa_eval": Kind(
        "Evaluation of a layer",
        "/evaluation",
        "attlas eval --sae LORSA-RUN",
        {"explained_variance": "explained variance", "ce_recovered": "CE recovered"},
    ),
    "features": Kind("Features", "/features", "attlas features", {"families": ""}),
    "head_survey": Kind(
        "Survey of heads",
        "/survey",
        "attlas features survey",
        {"polysemantic": "polysemantic share", "mean_groups": "groups a head", "mean_groups_control": "at random"},
    ),
    "sae_matching": Kind(
        "Two autoencoders",
        "/survey",
        "attlas features match --sae RUN --other RUN",
        {"same": "same", "split": "split", "absorbed": "absorbed"},
    ),
    "explanations": Kind(
        "Labels by a model",
        "/explain",
        "attlas explain --explainer smollm2-135m",
        {"n_explained": "labels", "detection": "detection", "detection_control": "control", "fuzzing": "fuzzing"},
    ),
    "heads": Kind(
        "Heads on a corpus",
        "/heads",
        "attlas heads",
        {"top_induction_head": "induction head", "unexplained": "unexplained share"},
    ),
    "head_weights": Kind(
        "Weights of heads",
        "/layers",
        "attlas heads weights",
        {"top_copying_head": "copying head", "random_composition": "composition at random"},
    ),
    "head_logits": Kind(
        "Logits of heads",
        "/heads",
        "attlas heads effects",
        {"top_logit_head": "adds most", "top_direct_logit": "logits", "lowest_logit_head": "adds least"},
    ),
    "head_points": Kind(
        "Projections of heads",
        "/heads",
        "attlas heads project",
        {"n_points": "pairs", "k_share": "variance of keys shown"},
    ),
    "head_similar": Kind(
        "Similar heads",
        "/heads",
        "attlas heads similar",
        {"most_similar": "most similar", "n_clusters": "clusters", "n_alone": "alone"},
    ),
    "entropy": Kind(
        "Entropy",
        "/layers",
        "attlas entropy",
        {"induction_head": "induction head", "previous_token_head": "previous-token head"},
    ),
    "anatomy": Kind(
        "Types of heads",
        "/layers",
        "attlas entropy anatomy",
        {"n_induction": "induction", "n_previous_token": "previous-token", "n_local": "local", "n_broad": "broad"},
    ),
    "timeline": Kind(
        "Heads over training",
        "/health",
        "attlas entropy timeline --checkpoints DIR",
        {"induction_head": "induction head", "induction_birth": "born between steps"},
    ),
    "tracker": Kind(
        "Tracked training",
        "/health",
        "attlas entropy --help",
        {"last_step": "last step", "lowest_head": "lowest head", "lowest_entropy_nats": "nats"},
    ),
    "selection": Kind(
        "Selection layers",
        "/health",
        "attlas entropy selection",
        {"full_layers": "full layers", "partition_coverage": "coverage"},
    ),
    "window_loss": Kind(
        "Window loss",
        "/health",
        "attlas entropy windows",
        {"window": "window", "most_affected_layer": "most affected layer", "most_affected_delta": "Δ loss"},
    ),
    "cost": Kind("Cost", "/health", "attlas entropy cost", {"attention_share": "attention's share by length"}),
    "collapse": Kind("Entropy collapse", "/health", "attlas entropy collapse", {"n_seeds": "seeds"}),
    "redundancy": Kind(
        "Redundancy",
        "/layers",
        "attlas redundancy",
        {"most_redundant_attn": "most redundant: attention", "most_redundant_mlp": "MLP"},
    ),
    "redundancy_timeline": Kind("Redundancy over training", "/prune", "attlas redundancy --checkpoints DIR", {}),
    "module_effects": Kind("Modules alone", "/prune", "attlas redundancy --alone", {}),
    "head_effects": Kind(
        "Heads alone",
        "/prune",
        "attlas redundancy --heads",
        {"costliest_head": "costliest head", "costliest_delta": "Δ loss"},
    ),
    "drop_curve": Kind(
        "Cost of dropping",
        "/prune",
        "attlas prune",
        {"dense_loss": "whole model's loss", "delta_attn_3": "Δ of 3 attention layers", "delta_mlp_3": "of 3 MLPs"},
    ),
    "prune": Kind(
        "Pruned model",
        "/prune",
        "attlas prune --target attn --n 1 --to DIR",
        {"dropped": "without", "loss_before": "loss", "loss_after": "after"},
    ),
    "what_dies": Kind(
        "Side effects",
        "/prune",
        "attlas prune --drop attn:1 --what-dies",
        {"induction_head_lost": "induction head lost"},
    ),
    "patching": Kind(
        "Patching",
        "/circuit",
        "attlas circuit patch --task induction --by head",
        {"base": "base", "estimate_pearson": "gradient estimate, Pearson"},
        _SAVED,
    ),
    "dla": Kind(
        "Direct attribution",
        "/circuit",
        "attlas circuit dla --task induction",
        {"logit_difference": "logit difference", "n_prompts": "prompts"},
        _SAVED,
    ),
    "circuit": Kind(
        "Circuit",
        "/circuit",
        "attlas circuit trace --task induction",
        {"n_nodes": "nodes", "n_edges": "edges", "heads": "heads"},
        _SAVED,
    ),
    "qk": Kind(
        "One attention score",
        "/circuit",
        "attlas circuit qk --task induction --layer 3 --head 0",
        {"score": "score", "n_pairs": "pairs"},
        _SAVED,
    ),
    "faithfulness": Kind(
        "Faithfulness",
        "/circuit",
        "attlas circuit trace --task induction --faithful",
        {
            "faithfulness": "recovered",
            "same_places_median": "at random in its places",
            "left_without_circuit": "left without it",
        },
        _SAVED,
    ),
    "steering": Kind(
        "Steering",
        "/steer",
        "attlas steer --feature 0",
        {"changed": "", "mode": "", "strength": "strength", "kl_steered": "KL", "kl_random": "at random"},
    ),
    "vit": Kind("ViT heads", "/vit", _VIT, {"top_head": "head that matters most:", "metric": "by"}),
    "vit_patterns": Kind(
        "ViT patterns",
        "/vit",
        "attlas vit patterns",
        {"n_maps": "maps", "explained_autoencoder": "explained", "explained_pca": "by PCA"},
    ),
    "vit_pruning": Kind(
        "ViT heads together",
        "/vit",
        "attlas vit pruning",
        {"metric": "", "greedy_mean": "greedy", "random_mean": "at random"},
    ),
    "vit_tokens": Kind(
        "ViT patches",
        "/vit",
        "attlas vit tokens",
        {"auc_least_received": "least received first", "auc_random": "at random"},
    ),
}


def headline(run: Run) -> str:
    """The run's numbers in one line: what its kind says of its summary."""
    kind = KINDS.get(run.kind)
    said = [] if kind is None else [(words, run.summary.get(key)) for key, words in kind.says.items()]
    return " · ".join(f"{words} {_value(value)}".strip() for words, value in said if value is not None)


def kind_name(kind: str) -> str:
    """What people call a kind of run."""
    return KINDS[kind].name if kind in KINDS else kind


def place_of(kind: str, run: str, model: str) -> str | None:
    """Address of the page that shows a run; None where none shows its kind."""
    known = KINDS.get(kind)
    return link(known.path, run=run, model=model, **known.query) if known else None


def listed(run: Run, names: dict[str, str]) -> dict[str, Any]:
    """A run as a line of a list."""
    return {
        "id": run.id,
        "kind": run.kind,
        "name": names.get(run.id, ""),
        "model": run.model.name,
        "data": run.data.name if run.data else None,
        "created": run.created,
        "headline": headline(run),
        "bytes": run.n_bytes,
        "attlas_version": run.attlas_version,
    }


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_value(v)} {k}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value[:8])
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

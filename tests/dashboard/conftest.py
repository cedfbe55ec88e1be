"""A small real workspace: every kind of run the pages show, made in well under a minute."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

from attlas.analyses.attention.anatomy import map_anatomy
from attlas.analyses.attention.cost import CostConfig, cost_profile
from attlas.analyses.attention.head_entropy import entropy
from attlas.analyses.attention.head_timeline import TimelineConfig, timeline
from attlas.analyses.attention.selection import SelectionConfig, selection_layers
from attlas.analyses.attention.windows import WindowConfig, window_loss
from attlas.analyses.circuits import (
    FaithfulnessConfig,
    LogitTarget,
    PatchingConfig,
    QKConfig,
    TaskConfig,
    TraceConfig,
    dla,
    faithfulness,
    make_task,
    patching,
    qk_attribution,
    trace,
)
from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.analyses.features.matching import sae_matching
from attlas.analyses.features.survey import HeadSurveyConfig, head_survey
from attlas.analyses.heads import HeadsConfig, head_atlas
from attlas.analyses.pruning.curve import DropCurveConfig, drop_curve
from attlas.analyses.redundancy.modules import module_effects
from attlas.analyses.redundancy.scores import redundancy
from attlas.analyses.redundancy.timeline import redundancy_timeline
from attlas.analyses.stability.alerts import AlertConfig
from attlas.analyses.stability.collapse import CollapseConfig, collapse_demo
from attlas.analyses.stability.tracker import EntropyTracker
from attlas.analyses.vit.heads import VitConfig, vit
from attlas.analyses.vit.patterns.run import VitPatternsConfig, vit_patterns
from attlas.analyses.vit.pruning import VitPruningConfig, vit_pruning
from attlas.analyses.vit.tokens.run import VitTokensConfig, vit_tokens
from attlas.cli import main
from attlas.dashboard.jobs import JobQueue
from attlas.data.checkpoints import find_checkpoints
from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import EvalConfig, TrainConfig, evaluate, train_sae


@pytest.fixture(scope="module", autouse=True)
def _no_work_left_behind() -> Iterator[None]:
    """Work of a module's servers ends with the module."""
    made: list[JobQueue] = []
    begin = JobQueue.__init__

    def noted(self: JobQueue, *args: object) -> None:
        begin(self, *args)  # type: ignore[arg-type]
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobQueue, "__init__", noted)
        yield
    for live in made:
        live.close()


HOOK = "blocks.3.attn.hook_z"


@pytest.fixture(scope="session")
def workspace(
    tmp_path_factory: pytest.TempPathFactory,
    gpt2_mini: HookedModel,
    vit_mini: HookedModel,
    val_tokens: TokenDataset,
    glyphs: ImageDataset,
) -> Workspace:
    found = Workspace(tmp_path_factory.mktemp("atlas") / "workspace")
    trained = train_sae(TrainConfig(model="gpt2-mini", hooks=(HOOK,), k=8, d_sae=256, n_tokens=20_000))
    (run,) = trained.save(found)
    sae = trained.saes[HOOK]
    evaluated = evaluate(sae, gpt2_mini, val_tokens, EvalConfig(n_bootstrap=50))
    evaluated.save(found, parents=(run.id,))
    told = features(gpt2_mini, sae, val_tokens, FeaturesConfig(null_draws=10))
    told.save(found, gpt2_mini.ref, val_tokens.ref, parents=(run.id,))
    few = val_tokens.take(8)
    surveyed = head_survey(gpt2_mini, {HOOK: sae}, few, HeadSurveyConfig(n_draws=20, n_dictionaries=20))
    surveyed.save(found, gpt2_mini.ref, few.ref, (run.id,))
    rotated = copy.deepcopy(sae)
    for name in ("W_enc", "W_dec", "b_enc"):  # half of the features are exchanged for a mixture of two
        half = getattr(rotated, name).data.movedim(-1 if name == "W_enc" else 0, 0)[128:]
        half.copy_((half + half.roll(1, 0)) / 2**0.5)
    sae_matching(gpt2_mini, sae, rotated, few).save(found, gpt2_mini.ref, few.ref, (run.id, run.id))
    entropy(gpt2_mini, val_tokens).save(found, gpt2_mini.ref, val_tokens.ref)
    redundancy(gpt2_mini, val_tokens).save(found, gpt2_mini.ref, val_tokens.ref)
    _pruning(found, gpt2_mini, val_tokens.take(4), run.id)
    vit(vit_mini, glyphs).save(found, vit_mini.ref, glyphs.ref)
    _health(found, gpt2_mini, val_tokens.take(4))
    map_anatomy(vit_mini, glyphs.take(8)).save(found, vit_mini.ref, glyphs.ref)
    small = HeadsConfig(n_intervals=2, n_top=2, n_sampled=1, n_control=2)
    head_atlas(gpt2_mini, few, small).save(found, gpt2_mini.ref, few.ref)
    head_atlas(vit_mini, glyphs.take(6), small).save(found, vit_mini.ref, glyphs.ref)
    return found


@pytest.fixture(scope="session")
def circuit_workspace(tmp_path_factory: pytest.TempPathFactory, gpt2_mini: HookedModel) -> Workspace:
    """Two small autoencoders and a run of each circuit analysis."""
    found = Workspace(tmp_path_factory.mktemp("circuits") / "workspace")
    hooks = ("blocks.2.attn.hook_z", HOOK)
    trained = train_sae(TrainConfig(model="gpt2-mini", hooks=hooks, k=8, d_sae=128, n_tokens=2_000))
    trained.save(found)
    task = make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=2, min_accuracy=0))
    for by in ("head", "position", "layer"):
        patching(gpt2_mini, task, PatchingConfig(by=by)).save(found, gpt2_mini.ref)
    chosen = PatchingConfig(by="feature", n_features=3)
    patching(gpt2_mini, task, chosen, saes={HOOK: trained.saes[HOOK]}).save(found, gpt2_mini.ref)
    dla(gpt2_mini, task).save(found, gpt2_mini.ref)
    qk_attribution(gpt2_mini, task.tokens[0], QKConfig(3, 0, -1, 1)).save(found)
    graph = trace(gpt2_mini, task.tokens[0], LogitTarget((int(task.right[0, 0]),)), TraceConfig(max_nodes=30, top_n=5))
    graph.save(found)
    faithfulness(gpt2_mini, task, graph, FaithfulnessConfig(n_random=2)).save(found, gpt2_mini.ref)
    return found


def _health(found: Workspace, model: HookedModel, text: TokenDataset) -> None:
    """Anatomy, two checkpoints, selection layers, window loss, cost, a tracked training with an alert, a collapse."""
    map_anatomy(model, text).save(found, model.ref, text.ref)
    checkpoints = find_checkpoints(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")
    timeline(checkpoints[::5], lambda _model: text, TimelineConfig(n_repeats=1)).save(found, data=text.ref)
    selection_layers(model, text.take(1), SelectionConfig((4, 16))).save(found, model.ref, text.ref)
    window_loss(model, text, WindowConfig((4, 16))).save(found, model.ref, text.ref)
    cost_profile(model, CostConfig((16, 32), repeats=1)).save(found, model.ref)
    hf = copy.deepcopy(model.hf).train()
    with EntropyTracker(hf, every=1, alerts=AlertConfig(patience=1, collapse=0.5)) as tracker:
        for gain in (1, 1, 20):
            hf.transformer.h[1].attn.c_attn.weight.data[:, : 2 * model.cfg.d_model] *= gain
            hf(input_ids=text.tokens[:2, :32])
            tracker.step()
    tracker.save(found, model.ref, text.ref)
    collapse_demo(CollapseConfig(models=("vit",), seeds=(0,), vit_steps=3, every=1)).save(found)


def _pruning(found: Workspace, model: HookedModel, text: TokenDataset, sae: str) -> None:
    """What each module costs alone, drop curves, scores of two checkpoints, and a healed model with what it lost."""
    module_effects(model, text).save(found, model.ref, text.ref)
    curve = DropCurveConfig(("attn", "mlp"), (1, 2), ("ranked", "random", "reversed"), n_random=2)
    drop_curve(model, text, text, curve).save(found, model.ref, text.ref)
    checkpoints = find_checkpoints(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")
    redundancy_timeline(checkpoints[-2:], lambda _model: text, device="cpu").save(found, data=text.ref)
    argv = [
        "--drop",
        "attn:2",
        "--what-dies",
        "--sae",
        sae,
        "--n-prompts",
        "4",
        "--heal-steps",
        "2",
        "--n-tokens",
        "512",
    ]
    assert main(["prune", *argv, "--seq-len", "128", "--calibration-tokens", "1024", "-w", str(found.path)]) == 0


@pytest.fixture(scope="session")
def vision_workspace(
    tmp_path_factory: pytest.TempPathFactory, vit_mini: HookedModel, glyphs: ImageDataset
) -> Workspace:
    """Every kind of run about vit-mini, and a small autoencoder with its features."""
    found, few = Workspace(tmp_path_factory.mktemp("vision") / "workspace"), glyphs.take(16)
    vit(vit_mini, few, VitConfig(n_bootstrap=20)).save(found, vit_mini.ref, few.ref)
    patterns = VitPatternsConfig(n_maps=240, n_clusters=3, n_latent=2, n_epochs=2, n_seeds=2, layout="pca")
    vit_patterns(vit_mini, few, patterns).save(found, vit_mini.ref, few.ref)
    pruned = VitPruningConfig(n_search=6, n_candidates=2, max_heads=2, n_random=1, n_bootstrap=20)
    vit_pruning(vit_mini, few, pruned).save(found, vit_mini.ref, few.ref)
    tokens = VitTokensConfig(remove_at=(0, 1), fractions=(0.0, 0.4), n_random=1, n_bootstrap=20)
    vit_tokens(vit_mini, few, tokens).save(found, vit_mini.ref, few.ref)
    trained = train_sae(TrainConfig(model="vit-mini", hooks=(HOOK,), k=4, d_sae=64, n_tokens=2_000))
    (run,) = trained.save(found)
    told = features(vit_mini, trained.saes[HOOK], few, FeaturesConfig(n_top=3))
    told.save(found, vit_mini.ref, few.ref, parents=(run.id,))
    return found

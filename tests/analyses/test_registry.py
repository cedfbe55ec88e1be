"""Every kind of run that the registry lists is made small, saved and opened again: it has its tables, as its schemas say."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from attlas.analyses import attention, circuits, explain, heads, pruning, redundancy, stability, steering, vit
from attlas.analyses import features as wing
from attlas.analyses.registry import TABLES
from attlas.data.checkpoints import find_checkpoints
from attlas.data.images.dataset import ImageDataset
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.runs.record import Ref, Run
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import (
    SAE,
    EvalConfig,
    LorsaTrainConfig,
    SweepConfig,
    TrainConfig,
    TrainResult,
    evaluate,
    evaluate_layer,
    sweep_saes,
    train_lorsa,
    train_sae,
)

HOOK = "blocks.2.attn.hook_z"
SMALL = TrainConfig(hooks=(HOOK,), n_tokens=512, d_sae=32, k=4, batch_size=128, buffer_tokens=512, capture_batch=4)


@dataclass(frozen=True)
class Bench:
    """Two models, a little data, and what several analyses need."""

    gpt2: HookedModel
    vit: HookedModel
    text: TokenDataset
    images: ImageDataset

    @cached_property
    def trained(self) -> TrainResult:
        return train_sae(SMALL, model=self.gpt2, data=self.text, progress=False)

    @property
    def sae(self) -> SAE:
        return self.trained.saes[HOOK]

    @cached_property
    def checkpoints(self) -> Any:
        return find_checkpoints(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")[::9]

    @cached_property
    def task(self) -> Any:
        return circuits.make_task(self.gpt2, circuits.TaskConfig(task="induction", n_prompts=2, min_accuracy=0))

    @cached_property
    def graph(self) -> Any:
        target = circuits.LogitTarget((int(self.task.right[0, 0]),))
        return circuits.trace(self.gpt2, self.task.tokens[0], target, circuits.TraceConfig(max_nodes=30, top_n=3))

    @property
    def unlabelled(self) -> ImageDataset:
        return dataclasses.replace(self.images, labels=None, class_names=None)


@pytest.fixture(scope="module")
def bench(gpt2_mini: HookedModel, vit_mini: HookedModel, val_tokens: TokenDataset, glyphs: ImageDataset) -> Bench:
    few = TokenDataset.from_tokens(val_tokens.tokens[:8, :24].contiguous(), "embedded:val")
    return Bench(gpt2_mini, vit_mini, few, glyphs.take(8))


def _tracked(b: Bench) -> Any:
    hf = copy.deepcopy(b.gpt2.hf).train()
    with stability.EntropyTracker(hf, every=1) as tracker:
        hf(input_ids=b.text.tokens[:2])
        tracker.step()
    return tracker


def _side_effects(b: Bench, saes: dict[str, SAE]) -> Any:
    config = pruning.SideEffectsConfig(("induction",), n_prompts=2, n_worst=1, n_examples=1)
    return pruning.drop_side_effects(b.gpt2, pruning.Drop.parse(("attn:2",)), b.text, saes, config)


def _drop_curve(b: Bench, orders: tuple[str, ...]) -> Any:
    return pruning.drop_curve(b.gpt2, b.text, b.text, pruning.DropCurveConfig(("attn",), (1,), orders, n_random=2))


def _prune(b: Bench, **more: Any) -> Any:
    return pruning.prune(b.gpt2, b.text, pruning.PruneConfig(drop=("attn:2",), **more))


def _vit(b: Bench, images: ImageDataset, measure: str) -> Any:
    return vit.vit(b.vit, images, vit.VitConfig((measure,), ("zero",), n_bootstrap=5))


class Nodding:
    """An explainer that names everything alike and says yes to everything."""

    name = identity = "nodding"

    def ask(self, prompt: explain.Prompt) -> explain.Reply:
        return explain.Reply("[1, 1, 1, 1, 1]" if "Description" in prompt.user else "LABEL: words")


def _explain(b: Bench) -> Any:
    config = explain.ExplainConfig(context=4, n_shown=3, n_test=8)
    return explain.explain(b.gpt2, b.sae, b.text, range(32), Nodding(), config)


MAKERS: dict[str, Callable[[Bench], tuple[Any, ...]]] = {
    "sae": lambda b: (b.trained.of(HOOK),),
    "sae_eval": lambda b: (evaluate(b.sae, b.gpt2, b.text, EvalConfig(controls=(), n_bootstrap=0)),),
    "sae_sweep": lambda b: tuple(
        sweep_saes(SweepConfig(SMALL, seed=seeds), model=b.gpt2, data=b.text, val=b.text, progress=False)
        for seeds in ((0,), (0, 1))
    ),
    "lorsa": lambda b: (
        train_lorsa(
            LorsaTrainConfig(TrainConfig(n_tokens=96, d_sae=24, k=4, batch_size=48), 2), model=b.gpt2, data=b.text
        ),
    ),
    "lorsa_eval": lambda b: (evaluate_layer({"sae": b.sae}, b.gpt2, b.text, EvalConfig(n_bootstrap=0)),),
    "features": lambda b: (
        wing.features(b.gpt2, b.sae, b.text, wing.FeaturesConfig(n_top=2, null_draws=5, n_scored=2, n_causal=1)),
    ),
    "head_survey": lambda b: (
        wing.head_survey(b.gpt2, {HOOK: b.sae}, b.text, wing.HeadSurveyConfig(n_draws=5, n_dictionaries=20)),
    ),
    "sae_matching": lambda b: (wing.sae_matching(b.gpt2, b.sae, b.sae, b.text),),
    "explanations": lambda b: (_explain(b),),
    "steering": lambda b: (steering.steer(b.gpt2, "a", steering.SteerConfig((1,), n_new=2, n_rows=2), b.sae, b.text),),
    "heads": lambda b: tuple(
        heads.head_atlas(model, data, heads.HeadsConfig(n_top=2, n_sampled=1, n_control=2))
        for model, data in ((b.gpt2, b.text), (b.vit, b.images))
    ),
    "head_weights": lambda b: (heads.head_weights(b.gpt2, heads.WeightsConfig(n_pairs=2, n_vocab=64, n_random=2)),),
    "head_logits": lambda b: (heads.head_logits(b.gpt2, b.text),),
    "head_points": lambda b: tuple(
        heads.head_projections(b.gpt2, b.text, heads.ProjectConfig(n_points=4, n_rows=2, **more))
        for more in ({}, {"map": "tsne", "map_heads": ("0.0",)})
    ),
    "head_similar": lambda b: (heads.similar_heads(b.gpt2, b.text, heads.SimilarConfig(n_rows=2, n_control=2)),),
    "entropy": lambda b: (attention.entropy(b.gpt2, b.text), attention.entropy(b.vit, b.images)),
    "tracker": lambda b: (_tracked(b),),
    "timeline": lambda b: (
        attention.timeline(
            b.checkpoints, lambda _: b.text, attention.TimelineConfig(n_repeats=1, repeat_length=8, n_draws=2)
        ),
    ),
    "anatomy": lambda b: (attention.map_anatomy(b.gpt2, b.text), attention.map_anatomy(b.vit, b.images)),
    "selection": lambda b: (attention.selection_layers(b.gpt2, b.text, attention.SelectionConfig((4,))),),
    "window_loss": lambda b: (attention.window_loss(b.gpt2, b.text, attention.WindowConfig((4,))),),
    "cost": lambda b: (attention.cost_profile(b.gpt2, attention.CostConfig((8, 16), repeats=1)),),
    "collapse": lambda b: (
        stability.collapse_demo(stability.CollapseConfig(models=("vit",), seeds=(0,), vit_steps=1, every=1)),
    ),
    "redundancy": lambda b: (redundancy.redundancy(b.gpt2, b.text),),
    "redundancy_timeline": lambda b: tuple(
        redundancy.redundancy_timeline(
            b.checkpoints, lambda _: b.text.take(2), device="cpu", heads=heads, alone=bool(heads)
        )
        for heads in (None, redundancy.HeadEffectsConfig(("taylor",), n_bootstrap=5))
    ),
    "module_effects": lambda b: (redundancy.module_effects(b.gpt2, b.text),),
    "head_effects": lambda b: (
        redundancy.head_effects(b.gpt2, b.text, redundancy.HeadEffectsConfig(("zero",), n_bootstrap=5)),
    ),
    "drop_curve": lambda b: tuple(_drop_curve(b, orders) for orders in (("ranked",), ("ranked", "random"))),
    "what_dies": lambda b: (_side_effects(b, {}), _side_effects(b, {HOOK: b.sae})),
    "patching": lambda b: (circuits.patching(b.gpt2, b.task, circuits.PatchingConfig(by="layer")),),
    "dla": lambda b: (circuits.dla(b.gpt2, b.task),),
    "circuit": lambda b: (b.graph,),
    "qk": lambda b: (circuits.qk_attribution(b.gpt2, b.task.tokens[0], circuits.QKConfig(3, 0, -1, 1)),),
    "faithfulness": lambda b: (
        circuits.faithfulness(b.gpt2, b.task, b.graph, circuits.FaithfulnessConfig(n_random=1)),
    ),
    "prune": lambda b: (_prune(b), _prune(b, heal_steps=1)),
    "vit": lambda b: tuple(
        _vit(b, images, measure) for images in (b.images, b.unlabelled) for measure in ("importance", "strength")
    ),
    "vit_patterns": lambda b: (
        vit.vit_patterns(
            b.vit, b.images, vit.VitPatternsConfig(96, n_latent=2, n_clusters=2, n_epochs=1, n_seeds=2, layout="pca")
        ),
    ),
    "vit_pruning": lambda b: (vit.vit_pruning(b.vit, b.images, vit.VitPruningConfig(4, 1, 1, 1, n_bootstrap=5)),),
    "vit_tokens": lambda b: (
        vit.vit_tokens(b.vit, b.images, vit.VitTokensConfig((1,), (0.0, 0.4), n_random=1, n_bootstrap=5)),
    ),
}


def test_every_kind_is_made() -> None:
    assert set(MAKERS) == set(TABLES)


def _saved(workspace: Workspace, result: Any) -> Run:
    """A result that knows its model is saved bare, the others with a reference."""
    known = result._origin()[0] is not None
    run: Run = result.save(workspace) if known else result.save(workspace, Ref("m", "0"), Ref("d", "1"))
    return run


@pytest.mark.parametrize("kind", TABLES)
def test_a_run_holds_the_tables_of_its_schemas(kind: str, bench: Bench, tmp_path: Path) -> None:
    torch.manual_seed(0)
    schemas = {schema.name: schema for schema in TABLES[kind]}
    assert len(schemas) == len(TABLES[kind]), "two schemas of one kind bear one name"
    always = {name for name, schema in schemas.items() if not schema.only}
    written, absent = set[str](), set[str]()
    for result in MAKERS[kind](bench):
        run = _saved(Workspace(tmp_path / "w"), result)
        again = Workspace(tmp_path / "w")
        assert run.kind == kind
        assert set(run.tables) <= set(schemas), f"tables that the registry does not name: {set(run.tables)}"
        assert set(run.tables) >= always, f"tables without `only` that are missing: {always - set(run.tables)}"
        for name in run.tables:
            schema = again.read_table(run, name).schema
            assert schema.equals(schemas[name].arrow), f"table {name} of {kind}"
            assert [f.metadata for f in schema] == [c.metadata for c in schemas[name].columns]
        written |= set(run.tables)
        absent |= set(schemas) - set(run.tables)
        assert again.latest(kind) is not None
        assert result.summary() is not None
    assert written == set(schemas), f"never written: {set(schemas) - written}"
    assert absent == set(schemas) - always, f"declared with `only`, and always there: {set(schemas) - always - absent}"

"""A TransformerBridge (text), or a plain transformers model (vision), is taken wherever a model is: every public function."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attlas.analyses import attention, circuits, explain, features, heads, pruning, redundancy, steering, tasks, vit
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import UnsupportedModelError
from attlas.interp import HookedModel, attended, load_model
from attlas.saes import (
    EvalConfig,
    LorsaTrainConfig,
    SweepConfig,
    TrainConfig,
    evaluate,
    evaluate_all,
    evaluate_layer,
    held_out,
    sweep_saes,
    train_lorsa,
    train_sae,
)
from attlas.saes.architectures import create_sae
from attlas.saes.config import SAEConfig

WINGS = ("attention", "circuits", "explain", "features", "heads", "pruning", "redundancy", "steering", "tasks", "vit")
FACES = ("attlas.interp", "attlas.saes", *[f"attlas.analyses.{wing}" for wing in WINGS])
HOOK = "blocks.0.attn.hook_z"
IN_TRAINING = {"merge_sigma", "sigma_reparam"}  # of attlas.analyses.stability: these change modules, of any kind
SHORT = TrainConfig(
    hooks=(HOOK,), d_sae=16, k=2, n_tokens=200, batch_size=40, buffer_tokens=100, capture_batch=2, seq_len=16
)
LORSA = LorsaTrainConfig(TrainConfig(d_sae=24, k=2, n_tokens=32, batch_size=32), 1)
Call = Callable[[Any], Any]


@pytest.fixture(scope="module")
def sae(gpt2_mini: HookedModel) -> Any:
    cfg = gpt2_mini.cfg
    config = SAEConfig(arch="topk", d_in=192, d_sae=32, k=2, hook_name=HOOK, n_heads=cfg.n_heads, d_head=cfg.d_head)
    return create_sae(config)


@pytest.fixture(scope="module")
def few(gpt2_mini: HookedModel) -> TokenDataset:
    draw = torch.Generator().manual_seed(0)
    return TokenDataset.from_tokens(torch.randint(1, gpt2_mini.cfg.d_vocab, (8, 16), generator=draw), "random")


@pytest.fixture(scope="module")
def text_calls(sae: Any, few: TokenDataset, gpt2_mini: HookedModel, tmp_path_factory: Any) -> dict[str, Call]:
    task = tasks.make_task(gpt2_mini, tasks.TaskConfig("induction", n_prompts=2))
    target = circuits.LogitTarget((int(task.right[0, 0]),))
    graph = circuits.trace(gpt2_mini, task.tokens[0], target)
    drop, folder = pruning.Drop(attn=(1,)), tmp_path_factory.mktemp("pruned") / "out"
    quick = redundancy.RedundancyConfig(n_bootstrap=10)
    return {
        "train_sae": lambda m: train_sae(SHORT, model=m, data=few, progress=False),
        "evaluate_layer": lambda m: evaluate_layer({"sae": sae}, m, few, EvalConfig(n_bootstrap=0)),
        "lorsa_features": lambda m: features.lorsa_features(
            m, train_lorsa(LORSA, model=m, data=few).lorsa, few, features.FeaturesConfig(n_top=1)
        ),
        "train_lorsa": lambda m: train_lorsa(LORSA, model=m, data=few),
        "sweep_saes": lambda m: sweep_saes(SweepConfig(SHORT, k=(2,)), model=m, data=few, val=few, progress=False),
        "evaluate": lambda m: evaluate(sae, m, few, EvalConfig(controls=())),
        "evaluate_all": lambda m: evaluate_all([(sae, None)], m, few, EvalConfig(controls=())),
        "held_out": lambda m: held_out(m, n_tokens=64, seq_len=16),
        "attended": lambda m: list(attended(m, few.tokens)),
        "cost_profile": lambda m: attention.cost_profile(m, attention.CostConfig((8,), repeats=1, n_layers=1)),
        "entropy": lambda m: attention.entropy(m, few),
        "map_anatomy": lambda m: attention.map_anatomy(m, few),
        "selection_layers": lambda m: attention.selection_layers(m, few, attention.SelectionConfig((4,))),
        "window_loss": lambda m: attention.window_loss(m, few, attention.WindowConfig((4,))),
        "explain": lambda m: explain.explain(
            m,
            sae,
            few,
            [0, 1],
            explain.LocalExplainer(m),
            explain.ExplainConfig(4, 3, 8, label_tokens=2, answer_tokens=2),
        ),
        "steer": lambda m: steering.steer(m, few.tokens[0, :4], steering.SteerConfig((1,), ("1.0",), n_new=2), sae),
        "firing": lambda m: features.firing(m, {HOOK: sae}, few.tokens[0]),
        "features": lambda m: features.features(m, sae, few, features.FeaturesConfig(null_draws=0)),
        "head_survey": lambda m: features.head_survey(
            m, {HOOK: sae}, few, features.HeadSurveyConfig(n_draws=2, n_dictionaries=20, least_active=1)
        ),
        "logit_effects": lambda m: features.logit_effects(m, sae.W_dec, HOOK, 2),
        "sae_matching": lambda m: features.sae_matching(m, sae, sae, few),
        "head_atlas": lambda m: heads.head_atlas(m, few, heads.HeadsConfig(n_top=1, n_sampled=0, n_control=2)),
        "head_weights": lambda m: heads.head_weights(m, heads.WeightsConfig(n_vocab=8, n_pairs=1)),
        "text_edges": lambda m: heads.text_edges(m, few.tokens[:1], 0, 0),
        "head_logits": lambda m: heads.head_logits(m, few),
        "head_projections": lambda m: heads.head_projections(m, few, heads.ProjectConfig(n_points=2)),
        "similar_heads": lambda m: heads.similar_heads(m, few, heads.SimilarConfig(n_rows=2, n_control=0)),
        "head_effects": lambda m: redundancy.head_effects(
            m, few.take(2), redundancy.HeadEffectsConfig(("zero",), n_bootstrap=10)
        ),
        "module_effects": lambda m: redundancy.module_effects(m, few.take(2), quick),
        "redundancy": lambda m: redundancy.redundancy(m, few, quick),
        "build": lambda m: pruning.build(m, drop),
        "drop_curve": lambda m: pruning.drop_curve(m, few, few, pruning.DropCurveConfig(("attn",), (1,), ("ranked",))),
        "export": lambda m: pruning.export(m, drop, folder, force=True, verify=False),
        "masked": lambda m: pruning.masked(m, drop).__enter__(),
        "prune": lambda m: pruning.prune(m, few, pruning.PruneConfig(drop=drop)),
        "select": lambda m: pruning.select(m, [("attn", 1)], pruning.Budget(parameters=0.01), few),
        "task_losses": lambda m: pruning.task_losses(m, drop, ("induction",), 2),
        "drop_side_effects": lambda m: pruning.drop_side_effects(
            m, drop, few, {HOOK: sae}, pruning.SideEffectsConfig(("induction",), 2)
        ),
        "heal": lambda m: pruning.heal(
            pruning.build(m, drop)[0], m, few, few, pruning.HealConfig(steps=1, batch_size=2, eval_every=1)
        ),
        "dla": lambda m: circuits.dla(m, task),
        "faithfulness": lambda m: circuits.faithfulness(m, task, graph, circuits.FaithfulnessConfig(n_random=0)),
        "patching": lambda m: circuits.patching(m, task, circuits.PatchingConfig(by="layer")),
        "qk_attribution": lambda m: circuits.qk_attribution(m, task.tokens[0], circuits.QKConfig(3, 0)),
        "trace": lambda m: circuits.trace(m, task.tokens[0], target),
        "FrozenPass": lambda m: circuits.FrozenPass(m, task.tokens[0]),
        "make_task": lambda m: tasks.make_task(m, tasks.TaskConfig("induction", n_prompts=1)),
        "require_ability": lambda m: tasks.require_ability(m, task, 0.0),
        "score_task": lambda m: tasks.score_task(m, task),
        "task_from_prompts": lambda m: tasks.task_from_prompts(m, "one two one", " two"),
    }


@pytest.fixture(scope="module")
def image_calls(vit_mini: HookedModel, glyphs: Any) -> dict[str, Call]:
    images, cfg = glyphs.take(12), vit_mini.cfg
    width = cfg.n_heads * cfg.d_head
    sae = create_sae(
        SAEConfig(arch="topk", d_in=width, d_sae=32, k=2, hook_name=HOOK, n_heads=cfg.n_heads, d_head=cfg.d_head)
    )
    return {
        "image_attention": lambda m: vit.image_attention(m, images.pixels[0]),
        "feature_heat": lambda m: vit.feature_heat(m, sae, images.pixels[0], n_top=1),
        "vit": lambda m: vit.vit(m, images, vit.VitConfig(("importance",), ("zero",), n_bootstrap=10)),
        "vit_patterns": lambda m: vit.vit_patterns(
            m, images, vit.VitPatternsConfig(240, n_clusters=2, n_epochs=1, n_seeds=2, layout="pca")
        ),
        "vit_pruning": lambda m: vit.vit_pruning(
            m, images, vit.VitPruningConfig(n_search=4, max_heads=1, n_random=1, n_candidates=1, n_bootstrap=10)
        ),
        "vit_tokens": lambda m: vit.vit_tokens(
            m, images, vit.VitTokensConfig((1,), (0.0, 0.5), n_curve_images=4, n_random=1, n_bootstrap=10)
        ),
    }


@pytest.fixture(scope="module")
def text_kinds() -> dict[str, Any]:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(EMBEDDED_DIR / "gpt2-mini")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain.tokenizer = AutoTokenizer.from_pretrained(folder)
    return {"bridge": TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32), "plain": plain}


def _functions() -> Iterator[str]:
    """Public functions and classes with a parameter `model` that is a whole model (`dense` of heal)."""
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            found = getattr(module, name)
            if not (inspect.isfunction(found) or name == "FrozenPass"):
                continue
            if name != "as_hooked" and {"model", "dense"} & set(inspect.signature(found).parameters):
                yield name


def test_every_public_function_with_a_model_is_called(
    text_calls: dict[str, Call], image_calls: dict[str, Call]
) -> None:
    found = set(_functions()) - IN_TRAINING
    assert len(found) > 40
    assert found == {*text_calls, *image_calls}


@pytest.mark.filterwarnings("ignore::UserWarning")  # the autoencoders here know no model
def test_text_functions_take_a_bridge(text_kinds: dict[str, Any], text_calls: dict[str, Call]) -> None:
    refused = {}
    for name, call in text_calls.items():
        try:
            assert call(text_kinds["bridge"]) is not None or name == "require_ability"
        except Exception as error:
            refused[name] = repr(error)
    assert not refused


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_vision_functions_take_a_plain_model(image_calls: dict[str, Call]) -> None:
    from transformers import ViTForImageClassification

    plain = ViTForImageClassification.from_pretrained(str(EMBEDDED_DIR / "vit-mini"), dtype=torch.float32).eval()
    for name, call in image_calls.items():
        assert call(plain) is not None, name


def test_a_bridge_gives_the_numbers_of_its_model(
    text_kinds: dict[str, Any], gpt2_mini: HookedModel, few: TokenDataset, tmp_path: Path
) -> None:
    bridge = text_kinds["bridge"]
    with torch.no_grad():
        before = bridge(few.tokens)
    wrapped = load_model(bridge)
    assert wrapped.weight_hash == load_model(text_kinds["plain"]).weight_hash
    theirs = {p.data_ptr() for p in bridge.original_model.parameters()}
    assert {p.data_ptr() for p in wrapped.hf.parameters()} & theirs  # the same weights, not copies
    ours, same = attention.entropy(bridge, few), attention.entropy(gpt2_mini, few)
    np.testing.assert_allclose(ours.columns["entropy"], same.columns["entropy"], atol=1e-5)
    run = ours.save(Workspace(tmp_path), bridge, few)
    assert run.model == wrapped.ref
    with torch.no_grad():
        torch.testing.assert_close(bridge(few.tokens), before, atol=0, rtol=0)  # the bridge is as it was


def test_a_bridge_with_other_weights_is_refused() -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(EMBEDDED_DIR / "gpt2-mini"), device="cpu", dtype=torch.float32)
    bridge.enable_compatibility_mode()  # folds layer norms
    with pytest.raises(UnsupportedModelError, match="computes something else"):
        load_model(bridge)


def test_a_vision_bridge_gives_the_numbers_of_its_model(vit_mini: HookedModel, glyphs: Any) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(EMBEDDED_DIR / "vit-mini"), device="cpu", dtype=torch.float32)
    images = glyphs.take(8)
    ours, same = attention.entropy(bridge, images), attention.entropy(vit_mini, images)
    np.testing.assert_allclose(ours.columns["entropy"], same.columns["entropy"], atol=1e-5)
    assert pruning.prune(bridge, images, pruning.PruneConfig(drop=("attn:1",))).kind == "prune"

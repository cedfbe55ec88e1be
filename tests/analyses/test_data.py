"""Every analysis takes every shape of data that applies to it; of padded text each document counts as if it stood alone."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from attlas.analyses import attention, explain, features, heads, pruning, redundancy, steering, vit
from attlas.analyses.attention import EntropyConfig
from attlas.analyses.common.losses import measure_losses
from attlas.analyses.pruning.measure import measure_drops
from attlas.data.dataset import Dataset
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.errors import AttlasError, TextDataError
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop
from attlas.saes import (
    SAE,
    EvalConfig,
    LorsaTrainConfig,
    SAEConfig,
    SweepConfig,
    TrainConfig,
    evaluate,
    evaluate_all,
    evaluate_layer,
    sweep_saes,
    train_lorsa,
    train_sae,
)
from attlas.saes.architectures import create_sae

HOOK = "blocks.1.attn.hook_z"
SHORT = TrainConfig(
    hooks=(HOOK,), d_sae=16, k=2, n_tokens=120, batch_size=20, buffer_tokens=80, capture_batch=2, seq_len=8
)
LENGTHS = (12, 5, 9, 12, 7, 3, 10, 8)
QUICK = redundancy.RedundancyConfig(n_bootstrap=10, batch_size=3)
Call = Callable[[HookedModel, SAE, Dataset], Any]


@pytest.fixture(scope="module")
def gpt2() -> HookedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return load_model(model)


@pytest.fixture(scope="module")
def tiny_vit() -> HookedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return load_model(ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=2)).eval())


@pytest.fixture(scope="module")
def sae() -> SAE:
    torch.manual_seed(0)
    return create_sae(
        SAEConfig(arch="topk", d_in=16, d_sae=24, k=2, hook_name=HOOK, n_heads=2, d_head=8, skip_positions=1)
    )


def documents() -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [[0, *torch.randint(1, 60, (n - 1,), generator=draw).tolist()] for n in LENGTHS]


@pytest.fixture(scope="module")
def padded() -> TokenDataset:
    return TokenDataset.padded(documents(), "documents", pad=60)


@pytest.fixture(scope="module")
def kinds(padded: TokenDataset) -> dict[str, Dataset]:
    draw = torch.Generator().manual_seed(0)
    shown = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    return {
        "text": TokenDataset.from_tokens(torch.randint(1, 61, (8, 12), generator=draw), "random"),
        "padded": padded,
        "images": ImageDataset(
            torch.randn(8, 3, 16, 16, generator=draw), shown, torch.arange(8) % 2, None, "noise", "0" * 16
        ),
    }


def _prune(m: HookedModel, data: Dataset) -> Any:
    return pruning.prune(m, data, pruning.PruneConfig(drop=("attn:1",), heal_steps=1))  # type: ignore[arg-type]


def _survey(m: HookedModel, sae: SAE, data: Dataset) -> Any:
    config = features.HeadSurveyConfig(n_draws=2, n_dictionaries=20, least_active=1)
    return features.head_survey(m, {HOOK: sae}, data, config)  # type: ignore[arg-type]


class Echo:
    """An explainer that repeats what it is asked."""

    name = identity = "echo"

    def ask(self, prompt: explain.Prompt) -> explain.Reply:
        return explain.Reply(prompt.user)


ALL: dict[str, Call] = {
    "train_sae": lambda m, sae, data: train_sae(SHORT, model=m, data=data, progress=False),
    "sweep_saes": lambda m, sae, data: sweep_saes(
        SweepConfig(SHORT, k=(2,)), model=m, data=data, val=data, progress=False
    ),
    "evaluate": lambda m, sae, data: evaluate(sae, m, data, EvalConfig(n_bootstrap=10)),
    "evaluate_all": lambda m, sae, data: evaluate_all([(sae, None)], m, data, EvalConfig(controls=(), n_bootstrap=10)),
    "features": lambda m, sae, data: features.features(
        m, sae, data, features.FeaturesConfig(n_top=2, null_draws=5, n_scored=2, n_causal=1)
    ),
    "entropy": lambda m, sae, data: attention.entropy(m, data),
    "redundancy": lambda m, sae, data: redundancy.redundancy(m, data, QUICK),
    "module_effects": lambda m, sae, data: redundancy.module_effects(m, data, QUICK),
    "head_effects": lambda m, sae, data: redundancy.head_effects(
        m, data, redundancy.HeadEffectsConfig(("zero", "mean", "mean_per_position", "taylor"), n_bootstrap=10)
    ),
    "drop_curve": lambda m, sae, data: pruning.drop_curve(
        m, data, data, pruning.DropCurveConfig(("attn", "head"), (1,), ("ranked", "random"), n_random=1)
    ),
    "prune": lambda m, sae, data: _prune(m, data),
    "select": lambda m, sae, data: pruning.select(m, [("attn", 1)], pruning.Budget(max_delta_ce=9.0), data),
    "heal": lambda m, sae, data: pruning.heal(
        pruning.build(m, Drop(attn=(1,)))[0], m, data, data, pruning.HealConfig(steps=1, objective="ce")
    ),
    "drop_side_effects": lambda m, sae, data: pruning.drop_side_effects(
        m, Drop(mlp=(1,)), data, {HOOK: sae}, pruning.SideEffectsConfig((), least_active=1)
    ),
}
"""Take packed text, padded text and images."""
PACKED: dict[str, Call] = {
    "head_atlas": lambda m, sae, data: heads.head_atlas(m, data, heads.HeadsConfig(n_top=1, n_control=2)),
    "head_projections": lambda m, sae, data: heads.head_projections(m, data, heads.ProjectConfig(n_points=4, n_rows=2)),
    "similar_heads": lambda m, sae, data: heads.similar_heads(m, data, heads.SimilarConfig(n_rows=2, n_control=2)),
    "map_anatomy": lambda m, sae, data: attention.map_anatomy(m, data),
    "sae_matching": lambda m, sae, data: features.sae_matching(m, sae, sae, data),
    "selection_layers": lambda m, sae, data: attention.selection_layers(m, data, attention.SelectionConfig((4,))),
    "window_loss": lambda m, sae, data: attention.window_loss(m, data, attention.WindowConfig((3,))),
}
"""Take packed text and images, and refuse padding."""
TEXT: dict[str, Call] = {"head_survey": _survey, "head_logits": lambda m, sae, data: heads.head_logits(m, data)}  # type: ignore[arg-type]
"""Take packed text alone."""
LORSA = LorsaTrainConfig(TrainConfig(d_sae=16, k=2, n_tokens=36, batch_size=24), layer=1)
ANY_TEXT: dict[str, Call] = {
    "train_lorsa": lambda m, sae, data: train_lorsa(LORSA, model=m, data=data),
    "evaluate_layer": lambda m, sae, data: evaluate_layer({"sae": sae}, m, data, EvalConfig(n_bootstrap=0)),
    "lorsa_features": lambda m, sae, data: features.lorsa_features(
        m, train_lorsa(LORSA, model=m, data=data).lorsa, data, features.FeaturesConfig(n_top=1)
    ),
    "steer": lambda m, sae, data: steering.steer(m, torch.arange(4), steering.SteerConfig((1,), n_new=2), sae, data),  # type: ignore[arg-type]
    "explain": lambda m, sae, data: explain.explain(m, sae, data, range(24), Echo(), explain.ExplainConfig(4, 3, 8)),  # type: ignore[arg-type]
}
"""Take packed and padded text."""
IMAGES = {"vit", "vit_patterns", "vit_pruning", "vit_tokens"}  # their parameter is `images`


def test_every_public_function_with_data_is_called() -> None:
    found = set()
    for face in (
        "attlas.saes",
        *(
            f"attlas.analyses.{wing}"
            for wing in ("attention", "explain", "features", "heads", "pruning", "redundancy", "steering")
        ),
    ):
        module = importlib.import_module(face)
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and {"data", "evaluation", "held_out"} & set(
                inspect.signature(function).parameters
            ):
                found.add(name)
    assert len(found) > 15
    assert found - {"timeline", "redundancy_timeline"} == {
        *ALL,
        *PACKED,
        *TEXT,
        *ANY_TEXT,
    }  # these make data for each checkpoint
    assert {name for name in vit.__all__ if "images" in inspect.signature(getattr(vit, name)).parameters} >= IMAGES


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["text", "padded", "images"])
@pytest.mark.parametrize("name", [*ALL, *PACKED, *TEXT, *ANY_TEXT])
def test_analyses_take_it(
    name: str, kind: str, gpt2: HookedModel, tiny_vit: HookedModel, sae: SAE, kinds: dict[str, Dataset]
) -> None:
    model = tiny_vit if kind == "images" else gpt2
    call = (ALL | PACKED | TEXT | ANY_TEXT)[name]
    if kind == "padded" and name not in {*ALL, *ANY_TEXT}:
        with pytest.raises(TextDataError, match="'documents' is padded"):
            call(model, sae, kinds[kind])
    elif kind == "images" and name in {*TEXT, *ANY_TEXT}:
        with pytest.raises(AttlasError):
            call(model, sae, kinds[kind])
    else:
        assert call(model, sae, kinds[kind]) is not None


# -- padded text against each document alone ------------------------------------------------------------------------------


def alone() -> list[TokenDataset]:
    return [TokenDataset.from_tokens(torch.tensor([document]), "one") for document in documents()]


def test_losses_are_those_of_each_document(gpt2: HookedModel, padded: TokenDataset) -> None:
    found = measure_losses(gpt2, padded, batch_size=3)
    each = [measure_losses(gpt2, one) for one in alone()]
    np.testing.assert_allclose(found.loss, [one.loss[0] for one in each], rtol=1e-5)
    np.testing.assert_allclose(found.right, [one.right[0] for one in each], rtol=1e-5)
    assert found.total[2] == sum(LENGTHS) - len(LENGTHS)
    drop = Drop(attn=(0,), heads=((1, 1),))
    _, (dropped,), _ = measure_drops(gpt2, padded, [drop], batch_size=3)
    np.testing.assert_allclose(
        dropped.loss, [measure_drops(gpt2, one, [drop])[1][0].loss[0] for one in alone()], rtol=1e-5
    )
    assert abs(found.loss - dropped.loss).max() > 1e-3


def test_module_and_head_effects_are_those_of_each_document(gpt2: HookedModel, padded: TokenDataset) -> None:
    modules = redundancy.module_effects(gpt2, padded, QUICK).per_sequence
    config = redundancy.HeadEffectsConfig(("zero", "taylor"), n_bootstrap=10, batch_size=3)
    heads = redundancy.head_effects(gpt2, padded, config).per_sequence
    for row, one in enumerate(alone()):
        np.testing.assert_allclose(modules[row], redundancy.module_effects(gpt2, one, QUICK).per_sequence[0], atol=1e-5)
        expected = redundancy.head_effects(gpt2, one, config).per_sequence
        for name in config.ablations:
            np.testing.assert_allclose(heads[name][row], expected[name][0], atol=1e-5)


def test_redundancy_and_entropy_are_means_over_documents(gpt2: HookedModel, padded: TokenDataset) -> None:
    found = redundancy.redundancy(gpt2, padded, QUICK)
    each = [redundancy.redundancy(gpt2, one, QUICK) for one in alone()]
    np.testing.assert_allclose(found.scores, np.mean([one.scores for one in each], axis=0), atol=1e-6)
    np.testing.assert_allclose(found.runs.mean, np.mean([one.runs.mean for one in each], axis=0), atol=1e-5)
    assert found.n_tokens == sum(LENGTHS)
    config = EntropyConfig(batch_size=3, skip_first=2)
    ours = attention.entropy(gpt2, padded, config)
    theirs = [attention.entropy(gpt2, one, config) for one in alone()]
    assert ours.n_queries == sum(one.n_queries for one in theirs)
    for name in ("entropy", "normalized", "sink_mass", "mean_distance", "lower_bound"):
        expected = np.mean([one.columns[name] for one in theirs], axis=0)
        np.testing.assert_allclose(ours.columns[name], expected, atol=1e-5, err_msg=name)
    with pytest.raises(AttlasError, match="a row without a query after the first 3"):
        attention.entropy(gpt2, padded, EntropyConfig(skip_first=3))


def test_evaluation_is_over_the_tokens_of_all_documents(gpt2: HookedModel, padded: TokenDataset, sae: SAE) -> None:
    config = EvalConfig(controls=(), n_bootstrap=0, eval_batch=3)
    found = evaluate(sae, gpt2, padded, config)
    each = [evaluate(sae, gpt2, one, config) for one in alone()]
    tokens, predictions = np.array(LENGTHS) - 1, np.array(LENGTHS) - 1
    assert found.rows[0]["n_tokens"] == tokens.sum()
    for name, weights in (
        ("l0", tokens),
        ("squared_error", tokens),
        ("ce_clean", predictions),
        ("ce_spliced", predictions),
    ):
        expected = np.average([one.value(name) for one in each], weights=weights)
        assert found.value(name) == pytest.approx(expected, rel=1e-5), name
    np.testing.assert_allclose(
        found.density_F, np.average([one.density_F for one in each], axis=0, weights=tokens), atol=1e-9
    )


def test_features_do_not_see_padding(gpt2: HookedModel, padded: TokenDataset, sae: SAE) -> None:
    config = features.FeaturesConfig(n_top=4, null_draws=0, batch_size=3, context=40)
    found = features.features(gpt2, sae, padded, config)
    count = sum(features.features(gpt2, sae, one, config).stream.count for one in alone())
    assert torch.equal(found.stream.count, torch.as_tensor(count))
    assert found.n_tokens == sum(LENGTHS) - len(LENGTHS)
    for example in found.examples:
        assert example.position < LENGTHS[example.sequence]
        assert example.start + len(example.activations) <= LENGTHS[example.sequence]
    assert 60 not in {token for document in documents() for token in document}
    assert 60 not in {token for entries in found.top_tokens.values() for token, *_ in entries}


def test_training_reads_no_padding(gpt2: HookedModel, padded: TokenDataset, tmp_path: Any) -> None:
    import dataclasses

    from attlas.saes.training.sources import model_source
    from attlas.saes.training.store import store_source

    config = dataclasses.replace(SHORT, skip_positions=1, capture_batch=len(padded), store=tmp_path / "store")
    z = gpt2.capture(padded.tokens, [HOOK])[HOOK].flatten(2)
    expected = torch.cat([z[row, 1:n] for row, n in enumerate(LENGTHS)])
    for source in (model_source, store_source):
        rows = source(gpt2, padded, [HOOK], config)(0)[HOOK]
        assert len(rows) == len(expected)
        torch.testing.assert_close(rows.sum(0), expected.sum(0), atol=1e-4, rtol=1e-4)

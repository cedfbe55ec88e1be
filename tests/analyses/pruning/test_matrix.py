"""Every family × target × format: exported, opened in a fresh process without attlas, compared with the masked model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from attlas.analyses.pruning.checkpoint import export
from attlas.analyses.pruning.reopen import Reopened, reopen
from attlas.analyses.pruning.surgery import build, difference, probe
from attlas.errors import CheckpointError, ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop, masked, silent_parts

_GPT2 = {
    "vocab_size": 97,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_TEXT = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_SEEN = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
}
_VIT = {**_SEEN, "intermediate_size": 32, "num_labels": 5}
_DINO = {**_SEEN, "mlp_ratio": 2}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT2)),
    "gpt2 inverse": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT2, scale_attn_by_inverse_layer_idx=True)),
    "gpt2 inverse reordered": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(**_GPT2, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)
    ),
    "gpt2 backbone": lambda: tf.GPT2Model(tf.GPT2Config(**_GPT2)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_TEXT, sliding_window=6)),
    "qwen2 mixed": lambda: tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**_TEXT, use_sliding_window=True, sliding_window=6, max_window_layers=1, layer_types=_MIXED)
    ),
    "qwen2 from layer 1": lambda: tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**_TEXT, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_VIT)),
    "deit": lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**_VIT)),
    "deit distilled": lambda: tf.DeiTForImageClassificationWithTeacher(tf.DeiTConfig(**_VIT)),
    "ijepa": lambda: tf.IJepaForImageClassification(tf.IJepaConfig(**_VIT)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**_DINO, out_indices=[1, 3])),
    "dinov2 classifier": lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**_DINO, num_labels=5)),
    "dinov2 swiglu": lambda: tf.Dinov2Model(tf.Dinov2Config(**_DINO, use_swiglu_ffn=True)),
    "registers": lambda: tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**_DINO)),
    "registers classifier": lambda: tf.Dinov2WithRegistersForImageClassification(
        tf.Dinov2WithRegistersConfig(**_DINO, num_labels=5)
    ),
}
_GROUP = tuple((layer, head) for layer in range(3) for head in (0, 1, 2))  # a whole kv head's, in every layer
DROPS = {
    "block": Drop(blocks=(0,)),
    "attn": Drop(attn=(0,)),
    "mlp": Drop(mlp=(1,)),
    "heads": Drop(heads=((0, 0), (2, 1), (2, 2))),
    "heads alike": Drop(heads=_GROUP),
    "joint": Drop(blocks=(1,), attn=(0,), mlp=(2,), heads=((2, 0),)),
}
# what differs: blocks are stock in both formats; what is silenced alone is silenced in "joint" too
CASES = [("block", "stock"), ("attn", "compact"), ("mlp", "compact"), ("heads", "stock"), ("heads", "compact")]
CASES += [("heads alike", "stock"), ("joint", "stock"), ("joint", "compact")]


def random_model(make: Callable[[], Any]) -> HookedModel:
    """Weights of the size that a trained model has them: attention is far from uniform, norms are near 1."""
    torch.manual_seed(0)
    hf = make()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.normal_(0, 0.2)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return load_model(hf.eval())


def _drop(model: HookedModel, name: str) -> Drop:
    drop = DROPS[name]
    if name != "heads alike" or model.cfg.n_heads == 6:
        return drop
    return Drop(heads=tuple((layer, 1) for layer in range(3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], tuple[Any, ...]]:
    """(model, drop, format) → (hooked model, Drop, Exported, Reopened, outputs of the masked model)."""
    base = tmp_path_factory.mktemp("matrix")
    facts: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    for model_name, make in MODELS.items():
        model = random_model(make)
        for drop_name, format in CASES:
            drop = _drop(model, drop_name)
            with torch.no_grad(), masked(model, drop):
                expected = model(probe(model))
            done = export(model, drop, base / str(len(facts)), format=format, verify=False)
            facts[model_name, drop_name, format] = (model, drop, done, expected)
    found = reopen([done.check.job(done.folder) for _, _, done, _ in facts.values()])
    return {key: (*fact, entry) for (key, fact), entry in zip(facts.items(), found, strict=True)}


@pytest.mark.parametrize("model", MODELS)
def test_a_stranger_finds_the_masked_model(exported: dict[Any, Any], model: str) -> None:
    for drop_name, format in CASES:
        hooked, drop, done, expected, found = exported[model, drop_name, format]
        assert isinstance(found, Reopened), f"{drop_name} {format}: {found}"
        assert difference(found.outputs, expected) < 1e-5, (drop_name, format)
        done.check.verify(found)
        with torch.no_grad():
            assert difference(load_model(done.folder, device="cpu")(probe(hooked)), expected) < 1e-5
        if hooked.cfg.causal:
            assert found.decode < 1e-5, (drop_name, format)
            layers = 3 - len(drop.blocks) - (len(drop.attn) if format == "compact" else 0)
            whole = 2 * 4 * hooked.cfg.n_kv_heads * hooked.cfg.d_head
            if drop_name in ("block", "attn", "mlp"):
                assert found.kv_bytes == layers * whole


def test_fields_that_list_layers_are_numbered_anew(exported: dict[Any, Any]) -> None:
    config = tf.AutoConfig.from_pretrained(exported["dinov2", "block", "stock"][2].folder)
    assert config.stage_names == ["stem", "stage1", "stage2"]
    assert config.out_indices == [0, 2]  # stage 1 was the output of the dropped block: the stem's
    config = tf.AutoConfig.from_pretrained(exported["qwen2 mixed", "block", "stock"][2].folder)
    assert config.layer_types == _MIXED[1:]
    config = tf.AutoConfig.from_pretrained(exported["qwen2 from layer 1", "block", "stock"][2].folder)
    assert config.max_window_layers == 0
    assert config.layer_types == ["sliding_attention"] * 2


def test_a_field_unknown_here_is_refused(tmp_path: Path) -> None:
    model = random_model(MODELS["llama"])
    for key, value in (("expert_layers", [0, 2]), ("rates", [1.0, 2.0, 3.0]), ("first_k_layers", 2)):
        model.hf.config.__dict__[key] = value
        with pytest.raises(UnsupportedModelError, match=f"'{key}'"):
            export(model, Drop(blocks=(0,)), tmp_path / "out")
        build(model, Drop(attn=(0,)))
        del model.hf.config.__dict__[key]


def test_another_model_on_disk_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that change between the check in memory and the file are seen by the fresh process."""
    model = random_model(MODELS["gpt2"])
    save = tf.GPT2LMHeadModel.save_pretrained

    def damaged(hf: Any, *args: Any, **more: Any) -> None:
        with torch.no_grad():
            hf.transformer.h[0].attn.c_attn.weight[0] += 1.0
        save(hf, *args, **more)

    monkeypatch.setattr(tf.GPT2LMHeadModel, "save_pretrained", damaged)
    with pytest.raises(CheckpointError, match=r"another model in a fresh process .*outputs off by"):
        export(model, Drop(blocks=(0,)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


FIRST = Drop(attn=(1,), mlp=(2,), heads=((0, 0), (2, 1)))
THEN = Drop(mlp=(0,))


@pytest.mark.parametrize("name", ["gpt2 inverse", "llama", "qwen2 mixed", "deit distilled", "registers classifier"])
@pytest.mark.parametrize("format", ["stock", "compact"])
def test_opened_and_pruned_again(tmp_path: Path, name: str, format: str) -> None:
    model = random_model(MODELS[name])
    inputs = probe(model)
    with torch.no_grad():
        with masked(model, FIRST):
            once = model(inputs)
        with masked(model, Drop(FIRST.attn, (0, 2), (), FIRST.heads)):
            twice = model(inputs)
    folder = export(model, FIRST, tmp_path / "once", format=format, verify=False).folder
    again = load_model(folder, device="cpu")
    before = silent_parts(again)
    assert (before.attn, before.mlp, before.heads) == (FIRST.attn, FIRST.mlp, FIRST.heads)
    absent = {(1, head) for head in range(model.cfg.n_heads)}
    assert absent <= set(again.absent_heads) if format == "compact" else not again.absent_heads
    with torch.no_grad():
        assert difference(again(inputs), once) < 1e-5
    with pytest.raises(ConfigError, match=r"attention of layer 1 .* silent already"):
        export(again, Drop(attn=(1,)), tmp_path / "no")
    done = export(again, THEN, tmp_path / "twice", format="compact", verify=False)
    assert done.kept_attention == 2
    with torch.no_grad():
        assert difference(load_model(done.folder, device="cpu")(inputs), twice) < 1e-5
    assert done.n_parameters < sum(p.numel() for p in model.hf.parameters())

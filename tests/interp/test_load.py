"""Opening modules and folders: what is kept, what is refused in one line."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.errors import CheckpointError, UnsupportedModelError
from attlas.interp import load_model
from attlas.saes.architectures import create_sae


def _gpt2(**changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{"vocab_size": 97, "n_embd": 24, "n_layer": 2, "n_head": 3, **changes}))


def test_a_module_in_memory_keeps_its_mode_and_may_hold_scalars() -> None:
    module = _gpt2().train()
    module.register_buffer("scale", torch.tensor(1.0))
    with pytest.warns(UserWarning, match="training mode, with dropout"):
        model = load_model(module)
    assert module.training
    first = model.weight_hash
    module.scale.fill_(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(module.eval()).weight_hash != first
    assert not module.training


def _llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            **{
                "vocab_size": 97, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, **changes,
            }
        )
    )  # fmt: skip


def _edit(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return folder


def _save(module: Any, folder: Path, **changes: Any) -> Path:
    module.save_pretrained(folder)
    return _edit(folder, **changes)


def test_a_config_without_architectures_is_read_from_its_weights(tmp_path: Path) -> None:
    tokens = torch.randint(0, 97, (1, 8))
    cases = {"gpt2": _gpt2(), "untied": _llama(), "tied": _llama(tie_word_embeddings=True)}
    for name, module in cases.items():
        model = load_model(_save(module.eval(), tmp_path / name, architectures=...), device="cpu")
        assert model.has_head
        torch.testing.assert_close(model(tokens), module(tokens).logits, atol=1e-5, rtol=1e-5)
    for name, module in (("gpt2 base", _gpt2().transformer), ("llama base", _llama().model)):
        model = load_model(_save(module, tmp_path / name, architectures=...), device="cpu")
        assert not model.has_head
    shutil.copytree(EMBEDDED_DIR / "vit-mini", tmp_path / "vit")
    assert load_model(_edit(tmp_path / "vit", architectures=...), device="cpu").cfg.n_classes == 36
    with pytest.raises(CheckpointError, match=r"holds classifier weights.*\[\"ViTForImageClassification\"\]"):
        load_model(_edit(tmp_path / "vit", architectures=["ViTModel"]))
    with pytest.raises(CheckpointError, match=r"holds lm_head weights.*\[\"LlamaForCausalLM\"\]"):
        load_model(_edit(tmp_path / "untied", architectures=["LlamaModel"]))
    with pytest.raises(UnsupportedModelError, match="no HouseModel"):
        load_model(_edit(tmp_path / "untied", architectures=["HouseModel"]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_backbone_has_attention_but_no_losses(family: str) -> None:
    from attlas.analyses.attention.head_entropy import entropy
    from attlas.analyses.attention.windows import window_loss
    from attlas.analyses.circuits.frozen import FrozenPass
    from attlas.analyses.common.losses import quality
    from attlas.analyses.redundancy.heads import head_effects
    from attlas.analyses.redundancy.modules import module_effects
    from attlas.analyses.tasks.catalog import score_task
    from attlas.data.text import TokenDataset
    from attlas.saes.config import SAEConfig
    from attlas.saes.evaluation.measure import evaluate

    model = load_model(_gpt2().transformer.eval() if family == "gpt2" else _llama().model.eval())
    tokens = torch.randint(0, 97, (2, 16))
    data = TokenDataset.from_tokens(tokens, "random")
    assert entropy(model, data).columns["entropy"].shape[0] > 0
    assert model(tokens).shape == (2, 16, 24)
    sae = create_sae(SAEConfig(d_in=24, d_sae=48, k=4, arch="topk", hook_name="blocks.1.attn.hook_z"))
    for refused in (
        lambda: model.cross_entropy(tokens),
        lambda: window_loss(model, data),
        lambda: head_effects(model, data),
        lambda: module_effects(model, data),
        lambda: quality(model, data, 2),
        lambda: score_task(model, None),
        lambda: FrozenPass(model, tokens[:1]),
        lambda: evaluate(sae, model, data),
        lambda: model.W_U,
    ):
        with pytest.raises(
            UnsupportedModelError, match=r"\((GPT2|Llama)Model\) is a backbone without a language-model"
        ):
            refused()


LIES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1, not a whole number"),
    ({"num_hidden_layers": 10**9}, "states 1000000000 layers, the weights hold 2"),
    ({"num_hidden_layers": "two"}, 'num_hidden_layers is "two"'),
    ({"num_hidden_layers": 1}, "states 1 layers, the weights hold 2"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
    ({"num_hidden_layers": True}, "num_hidden_layers is true"),
    ({"hidden_size": "24"}, 'hidden_size is "24"'),
    ({"hidden_size": 48}, r"makes .* \[.*48.*\], the weights hold"),
    ({"hidden_size": 10**7}, r"makes .*, the weights hold"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": 5}, "config.json makes"),
    ({"num_attention_heads": 8}, "config.json makes"),
    ({"num_key_value_heads": 3}, "config.json makes"),
    ({"head_dim": 8}, r"self_attn.*_proj.weight \["),
    ({"head_dim": -6}, "head_dim is -6"),
    ({"intermediate_size": 10**12}, r"mlp.*_proj.weight \["),
    ({"intermediate_size": []}, r"intermediate_size is \[\]"),
    ({"vocab_size": 10**12}, r"weight \[1000000000000, 24\]"),
    ({"vocab_size": None}, "vocab_size is null"),
    ({"max_position_embeddings": "64"}, "max_position_embeddings is"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps is"),
    ({"hidden_act": "no_such_act"}, "config.json makes no model"),
    ({"architectures": "LlamaForCausalLM"}, "architectures is"),
    ({"model_type": ["llama"]}, r"names no model_type \(it is \['llama'\]\)"),
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(_llama(), tmp_path_factory.mktemp("honest") / "llama")


@pytest.mark.parametrize(("lie", "said"), LIES, ids=lambda x: str(x)[:50])
def test_a_lie_of_config_json_is_one_line(honest: Path, tmp_path: Path, lie: dict[str, Any], said: str) -> None:
    """Nothing is allocated: the largest of these would be terabytes."""
    shutil.copytree(honest, tmp_path / "it")
    with pytest.raises((CheckpointError, UnsupportedModelError), match=said) as caught:
        load_model(_edit(tmp_path / "it", **lie), device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_config_that_is_no_object_and_headers_that_are_none(honest: Path, tmp_path: Path) -> None:
    shutil.copytree(honest, tmp_path / "it")
    path = tmp_path / "it" / "model.safetensors"
    for damage in (b"", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", path.read_bytes()[:100]):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_model(tmp_path / "it", device="cpu")
    for text in ("[1, 2]", "null", "{", "\udcff"):
        (tmp_path / "it" / "config.json").write_text(text, errors="surrogateescape")
        with pytest.raises(CheckpointError, match="JSON"):
            load_model(tmp_path / "it", device="cpu")


@pytest.mark.parametrize("lie", [{"image_size": "16"}, {"patch_size": 0}, {"hidden_size": 100}, {"num_channels": 3}])
def test_lies_about_images(tmp_path: Path, lie: dict[str, Any]) -> None:
    shutil.copytree(EMBEDDED_DIR / "vit-mini", tmp_path / "it")
    with pytest.raises(CheckpointError, match=r"mend config\.json"):
        load_model(_edit(tmp_path / "it", **lie), device="cpu")


def test_heads_of_other_kinds(tmp_path: Path) -> None:
    import transformers as tf

    config = tf.DeiTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, intermediate_size=24
    )
    pixels = torch.randn(1, 3, 16, 16)
    taught = tf.DeiTForImageClassificationWithTeacher(config).eval()
    model = load_model(_save(taught, tmp_path / "taught", architectures=...), device="cpu")
    torch.testing.assert_close(model(pixels), taught(pixels).logits)
    with pytest.raises(UnsupportedModelError, match="neither logits nor hidden states"):
        load_model(tf.DeiTForMaskedImageModeling(config).eval())(pixels)
    judge = load_model(tf.GPT2ForSequenceClassification(_gpt2().config).eval())
    assert not judge.has_head
    with pytest.raises(UnsupportedModelError, match="GPT2ForSequenceClassification"):
        judge.cross_entropy(torch.zeros(1, 4, dtype=torch.long))


def test_an_unknown_model_type_names_the_nearest_and_what_is_missing(honest: Path, tmp_path: Path) -> None:
    shutil.copytree(honest, tmp_path / "it")
    for kind, said in (
        ("gpt_neo", "'gpt_neo' has no adapter .*did you mean 'gpt_neox'.*supported are"),
        ("bloom", "'bloom' has ALiBi biases, which no adapter reads"),
        ("zzzz", "'zzzz' has no adapter .*; supported are"),
    ):
        with pytest.raises(UnsupportedModelError, match=said) as caught:
            load_model(_edit(tmp_path / "it", model_type=kind), device="cpu")
        assert "\n" not in str(caught.value)


def test_code_beside_the_weights_is_never_executed(honest: Path, tmp_path: Path) -> None:
    """Neither a model's nor a tokenizer's, whatever config.json asks for; nor is anybody asked on the terminal."""
    folder, proof = tmp_path / "it", tmp_path / "executed"
    shutil.copytree(honest, folder)
    for name in ("modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    own = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_own.Own")
    for changes in ({}, {"model_type": "own"}, {"architectures": ["Own"]}):
        shutil.copy(honest / "config.json", folder / "config.json")
        with contextlib.suppress(UnsupportedModelError):
            load_model(_edit(folder, auto_map=own, **changes), device="cpu")
    shutil.copy(honest / "config.json", folder / "config.json")
    (folder / "tokenizer.json").write_text("{}")
    tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_model(folder, device="cpu")
    assert not proof.exists()


def test_a_backbone_class_is_refused_in_one_line() -> None:
    tf = pytest.importorskip("transformers")
    config = tf.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    with pytest.raises(UnsupportedModelError, match=r"Dinov2Backbone gives feature maps .* with Dinov2Model$"):
        load_model(tf.Dinov2Backbone(config))
    assert load_model(tf.Dinov2Model(config).eval()).cfg.n_layers == 1


def test_a_module_that_transformers_opened_is_the_model_of_its_folder() -> None:
    """The same hash while its weights are those of the files, in whatever type; another once one of them changes."""
    tf = pytest.importorskip("transformers")
    by_name = load_model("gpt2-mini", device="cpu")
    for dtype in (torch.float32, torch.float16):
        module = tf.GPT2LMHeadModel.from_pretrained(EMBEDDED_DIR / "gpt2-mini", dtype=dtype).eval()
        assert load_model(module).ref.hash == by_name.ref.hash
    with torch.no_grad():
        module.transformer.h[1].mlp.c_fc.bias[0] += 1
    assert load_model(module).ref.hash != by_name.ref.hash

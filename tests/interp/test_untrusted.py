"""Model folders that are not to be taken at their word: code beside the weights, ties, heads; and where layers go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attlas.cli import main
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.errors import AttlasError, CheckpointError, ConfigError, UnsupportedModelError
from attlas.interp import load_model

from .tiny_families import TINY

CODE = """
from pathlib import Path
from transformers import GPT2LMHeadModel
Path({marker!r}).touch()
class Their(GPT2LMHeadModel):
    pass
"""


def edited(folder: Path, **change: Any) -> None:
    record = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


def saved(name: str, folder: Path, **more: Any) -> Path:
    hf = TINY[name].make()
    hf.save_pretrained(folder)
    edited(folder, **more)
    return folder


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A copy of gpt2-mini whose config.json names code that leaves a mark when it is run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "theirs", tmp_path / "was-run"
    folder.mkdir()
    for path in (EMBEDDED_DIR / "gpt2-mini").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "modeling_their.py").write_text(CODE.format(marker=str(marker)))
    edited(folder, auto_map={"AutoModelForCausalLM": "modeling_their.Their"}, architectures=["Their"])
    return folder, marker


def test_code_beside_the_weights_is_run_only_where_it_is_trusted(with_code: tuple[Path, Path]) -> None:
    folder, marker = with_code
    with pytest.raises(AttlasError):  # its class is none of transformers'
        load_model(folder, device="cpu")
    edited(folder, architectures=["GPT2LMHeadModel"])
    plain = load_model(folder, device="cpu")
    assert type(plain.hf).__name__ == "GPT2LMHeadModel"
    assert not marker.exists()
    trusted = load_model(folder, device="cpu", trust_remote_code=True)
    assert marker.exists()
    assert type(trusted.hf).__name__ == "Their"
    tokens = plain.to_tokens("one two one")
    assert torch.equal(trusted(tokens), plain(tokens))


def test_the_command_line_has_the_flag(
    with_code: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = with_code
    argv = [
        "entropy",
        "heads",
        "--model",
        str(folder),
        "--n-tokens",
        "128",
        "--seq-len",
        "32",
        "-w",
        str(tmp_path / "w"),
    ]
    assert main(argv) == 2
    assert "transformers has no Their" in capsys.readouterr().err
    assert not marker.exists()
    assert main([*argv, "--trust-remote-code"]) == 0
    assert marker.exists()


def test_code_makes_no_adapter(tmp_path: Path) -> None:
    folder = saved("llama3", tmp_path, model_type="llama9", auto_map={"AutoModelForCausalLM": "x.Y"})
    for trust in (False, True):
        with pytest.raises(UnsupportedModelError, match="code beside its weights would not change that"):
            load_model(folder, device="cpu", trust_remote_code=trust)


def test_an_unembedding_beside_a_tie_is_refused(tmp_path: Path) -> None:
    folder = saved("llama3", tmp_path, tie_word_embeddings=True)  # saved untied
    with pytest.raises(
        CheckpointError, match=r'ties the unembedding .* another lm_head\.weight; write "tie_word_emb'
    ) as e:
        load_model(folder, device="cpu")
    assert "\n" not in str(e.value)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, path, {"format": "pt"})
    assert load_model(folder, device="cpu").hf.lm_head.weight.shape == (61, 48)  # the same twice is harmless
    del weights["lm_head.weight"]
    save_file(weights, path, {"format": "pt"})
    load_model(folder, device="cpu")
    edited(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as lm_head\.weight"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama3", {"head_dim": 6}),
        ("llama3", {"num_attention_heads": 6}),
        ("llama3", {"num_key_value_heads": 4}),
        ("neox", {"num_attention_heads": 5}),
        ("gemma2", {"head_dim": 12}),
        ("qwen3", {"head_dim": 20}),
        ("gptj", {"n_head": 5}),
    ],
)
def test_heads_that_contradict_the_weights_are_refused(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json makes") as caught:
        load_model(saved(name, tmp_path, **change), device="cpu")
    assert "\n" not in str(caught.value)


def test_device_map(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, mapped = (
        load_model("gpt2-mini", device="cpu"),
        load_model("gpt2-mini", device_map={"": "cpu"}, dtype="bfloat16"),
    )
    assert {str(p.device) for p in mapped.hf.parameters()} == {"cpu"}
    tokens = plain.to_tokens("one two one")
    assert mapped(tokens).dtype == torch.bfloat16
    assert (mapped(tokens).float() - plain(tokens)).abs().max() < 0.5
    z = mapped.capture(tokens, "blocks.3.attn.hook_z")["blocks.3.attn.hook_z"]
    assert z.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="two places; give one"):
        load_model("gpt2-mini", device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used"):
        load_model("gpt2-mini", device_map="nowhere")
    monkeypatch.setattr("attlas.interp.load.find_spec", lambda _: None)
    with pytest.raises(ImportError, match="needs the package accelerate"):
        load_model("gpt2-mini", device_map="auto")


def test_layers_left_out_of_memory_are_refused(tmp_path: Path) -> None:
    layers = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    layers |= {f"transformer.h.{i}": "cpu" if i < 3 else "disk" for i in range(4)}
    with pytest.raises(AttlasError, match=r"out of the devices' memory|offload") as caught:
        load_model("gpt2-mini", device_map=layers)
    assert "\n" not in str(caught.value)

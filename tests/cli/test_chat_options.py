"""`--chat` on verbs with a prompt and on verbs with a text; a model without a tokenizer, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from attlas.cli import main
from attlas.cli.inputs import DataArgs, load_data
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.interp import load_model
from attlas.saes import SAEConfig
from attlas.saes.architectures import create_sae
from attlas.saes.inputs import held_out, load_inputs
from attlas.saes.training.config import TrainConfig

TEMPLATE = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
TALK = [{"role": "user", "content": "Once upon a"}]
PARTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt2-mini with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    folder.mkdir()
    for name in PARTS:
        shutil.copy(EMBEDDED_DIR / "gpt2-mini" / name, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def _out(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


def test_a_prompt_is_a_conversation(chatty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    asked = ["circuit", "dla", "--model", str(chatty), "--workspace", str(tmp_path / "w"), "--json"]
    assert main([*asked, "--prompt", f"@{tmp_path / 'talk.json'}", "--chat"]) == 0
    chat = capsys.readouterr()
    assert main([*asked, "--prompt", "user: Once upon a\nassistant:"]) == 0
    assert json.loads(chat.out) == _out(capsys)
    said = " ".join(chat.err.split())
    assert r"prompt by the chat template of chatty: 'user: Once upon a\nassistant:'" in said


def test_features_fire_on_a_conversation(chatty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    hook = "blocks.2.attn.hook_z"
    create_sae(SAEConfig(arch="topk", d_in=192, d_sae=24, k=2, hook_name=hook, n_heads=6, d_head=32)).save(
        tmp_path / "sae"
    )
    asked = ["features", "firing", "Once upon a", "--model", str(chatty), "--sae", str(tmp_path / "sae"), "--json"]
    assert main([*asked, "--chat", "--workspace", str(tmp_path / "w")]) == 0
    model = load_model(chatty, device="cpu")
    assert _out(capsys)["tokens"] == model.to_str_tokens(model.to_tokens("user: Once upon a\nassistant:"))


def test_a_corpus_of_conversations(chatty: Path, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": TALK * 4}) + "\n" for _ in range(20)))
    model = load_model(chatty, device="cpu")
    small = {"seq_len": 16, "n_tokens": 128, "chat": True}
    expected = model.tokenizer("user: Once upon a\n" * 4)["input_ids"]
    found = [
        load_data(model, DataArgs(text=str(path), **small)),
        load_inputs(model, TrainConfig(text=str(path), **small)),
    ]  # type: ignore[arg-type]
    for data in (*found, held_out(model, str(path), **small)):  # type: ignore[arg-type]
        assert data.tensor[0, 1:].tolist() == expected[:15]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("circuit", "dla", "--prompt", "a", "--chat"), "has no chat template in its tokenizer; leave out --chat"),
        (("circuit", "dla", "--chat"), "--chat belongs to --prompt"),
        (("circuit", "dla", "--prompt", "@/no/file.json", "--chat"), "cannot be read"),
        (("entropy", "heads", "--chat"), "has no chat template in its tokenizer"),
    ],
)
def test_what_is_refused(
    command: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--workspace", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert line in said.replace("\n", " ")


def test_a_folder_without_a_tokenizer_takes_token_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in PARTS[:2]:
        shutil.copy(EMBEDDED_DIR / "gpt2-mini" / name, folder)
    asked = ["entropy", "heads", "--model", str(folder), "--workspace", str(tmp_path / "w"), "--seq-len", "16"]
    assert main(asked) == 2
    assert "give token ids in a column input_ids" in capsys.readouterr().err.replace("\n", " ")
    assert main(["circuit", "dla", "--prompt", "a", "--model", str(folder), "--workspace", str(tmp_path / "w")]) == 2
    assert "put its tokenizer.json" in capsys.readouterr().err.replace("\n", " ")
    ids = tmp_path / "ids.jsonl"
    ids.write_text("".join(json.dumps({"input_ids": [i, *range(100, 115)]}) + "\n" for i in range(8)))
    assert main([*asked, "--text", str(ids), "--json"]) == 0
    ids.write_text(json.dumps({"input_ids": [4096] * 16}) + "\n")
    assert main([*asked, "--text", str(ids)]) == 2
    assert "token ids 4096–4096, the model knows 0–4095" in capsys.readouterr().err.replace("\n", " ")

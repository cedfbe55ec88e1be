"""`attlas train`, `eval` and `export` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attlas.cli import main
from attlas.data.text import load_tokens
from attlas.data.workspace import Workspace
from attlas.interp import load_model
from attlas.saes import load_sae

SIZES = ["--n-tokens", "8192", "--d-sae", "256", "--k", "8", "--buffer-tokens", "4096", "--batch-size", "256"]
SIZES += ["--text", "embedded:val"]
HOOK = "blocks.2.attn.hook_z"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "w"
    assert main(["train", "-w", str(path), "--hooks", HOOK, *SIZES, "--json"]) == 0
    return path


def test_train_json_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w"
    assert main(["train", "-w", str(path), "--hooks", HOOK, *SIZES, "--json", "--resume"]) == 0
    written = capsys.readouterr()
    assert "no checkpoint of this configuration" in " ".join(written.err.split())
    printed = json.loads(written.out)
    (run,) = printed["runs"]
    assert printed["saes"][HOOK]["d_sae"] == 256
    assert load_sae(Workspace(path).folder(run)).cfg.hook_name == HOOK
    assert not list(path.glob(".training/*"))


def test_eval_of_the_newest(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "-w", str(workspace), "--n-tokens", "4096", "--n-bootstrap", "20", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (run,) = printed["runs"]
    record = Workspace(workspace).run(run)
    assert record.kind == "sae_eval"
    assert record.parents[0].startswith("sae-gpt2-mini")
    assert 0 < record.summary["ce_recovered"] <= 1.05


def test_every_sae_of_the_newest_training_is_measured_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    w = str(tmp_path / "w")
    small = ["--d-sae", "32", "--k", "2", "--n-tokens", "1024", "--batch-size", "256", "--buffer-tokens", "1024"]
    both = ["--hooks", "blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "--exclude-tokens", "eos", "--seq-len", "64"]
    assert main(["train", "-w", w, *both, *small]) == 0
    few = ["--n-tokens", "256", "--seq-len", "64"]
    assert main(["features", "-w", w, *few, "--n-top", "1", "--n-sample", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["eval", "-w", w, *few, "--controls", "pca", "--n-bootstrap", "0", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    workspace = Workspace(tmp_path / "w")
    trained = {run.id for run in workspace.runs("sae")}
    for runs in (told["runs"], measured["runs"]):
        assert {workspace.run(run).parents[0] for run in runs} == trained
    held = load_tokens("embedded:val", load_model("gpt2-mini", device="cpu").tokenizer, seq_len=64, n_tokens=256).tokens
    eos = load_model("gpt2-mini", device="cpu").tokenizer.eos_token_id
    kept = int((held[:, 1:] != eos).sum())
    assert {summary["n_tokens"] for summary in told["runs"].values()} == {kept}


@pytest.mark.parametrize("to", ["saelens", "sparsify", "dictionary_learning"])
def test_export(workspace: Path, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert main(["export", "-w", str(workspace), "--format", to, "--to", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["to"] == to
    assert load_sae(folder).cfg.d_sae == 256
    assert main(["export", "-w", str(workspace), "--to", to, "--folder", str(folder)]) == 2  # the older spelling
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["train", "--k", "300", "--d-sae", "256"], "k=300 must be between 1 and d_sae=256"),
        (["train", "--d-sae", "0"], "d_sae=0"),
        (["train", "--hooks", "blocks.9.attn.hook_z"], "'blocks.9.attn.hook_z': layer 9 is out of range 0–3"),
        (["train", "--sweep-sparsity", "1", "2"], "λ has no effect"),
        (["eval"], "holds no SAE"),
        (["eval", "--sae", "nowhere"], "does not exist"),
        (["export", "--to", "neuronpedia-json"], "holds no SAE"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_workspace(
    argv: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--n-tokens", "512", "--text", "embedded:val"] if argv[0] != "export" else []
    try:
        status = main([*argv, *(a for a in small), "-w", str(tmp_path / "w")])
    except SystemExit as stop:  # a dataclass refused its values while arguments were parsed
        status = stop.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert status == 2
    assert match in error
    assert not (tmp_path / "w").exists()

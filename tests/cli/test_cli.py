"""The command line: help with an example for every verb, JSON alone on stdout, one line and status 2 for bad input."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attlas.analyses.table_docs import updated
from attlas.cli import VERBS, main
from attlas.data.models_catalog import EMBEDDED_DIR

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--n-tokens", "2048", "--seq-len", "64"]


def _run(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as stop:  # tyro's own way out, for --help and for options that do not parse
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = _run(verb, "--help", capsys=capsys)
    assert status == 0, err
    assert "xample" in out
    assert f"attlas {verb}" in out
    assert importlib.import_module(f"attlas.cli.{verb}").run.__annotations__["out"] == "Output"


def test_usage_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run("--help", capsys=capsys)
    assert status == 0
    for verb in VERBS:
        assert f"\n  {verb} " in out
    status, _, err = _run("entrpy", capsys=capsys)
    assert status == 2
    assert "did you mean 'entropy'" in err
    assert len(err.strip().splitlines()) == 1


def test_help_loads_nothing_heavy() -> None:
    """All verbs in one process: a second each would be too long to wait for a line of help."""
    code = """
import contextlib, io, sys
from attlas.cli import VERBS, main
for argv in ([], *([verb] for verb in VERBS)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*argv, "--help"])
    heavy = {"torch", "transformers", "sklearn", "plotly", "dash", "duckdb", "sae_lens"} & set(sys.modules)
    assert not heavy, f"attlas {' '.join(argv)} --help loads {heavy}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["entropy", "--model", "gpt2-mni"], "gpt2-mini"),
        (["entropy", "--model", "no-org/no-model"], "network"),
        (["entropy", "--seq-len", "100000"], "longer than the context window"),
        (["entropy", "--text", "/no/such/file.txt"], "does not exist"),
        (["entropy", "--batch-size", "0"], "must be"),
        (["redundancy", "--model", "gpt2-mini", "--device", "nonsense"], "nonsense"),
        (["train", "--hooks", "blocks.9.attn.hook_z"], "blocks."),
        (["train", "--hooks", "blocks.1.attn.hook_zz"], "blocks.1.attn.hook_z"),
        (["train", "--k", "5000", "--d-sae", "256"], "k"),
        (["eval", "--sae", "no-such-run"], "no-such-run"),
        (["vit", "--model", "gpt2-mini"], "gpt2-mini"),
        (["vit", "--images", "/no/such/folder"], "does not exist"),
        (["models", "get", "smollm"], "smollm2-135m"),
        (["export", "--sae", "no-such-run", "--to", "saelens", "--to-folder", "x"], "no-such-run"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    workspace = [] if argv[0] == "models" else ["--workspace", str(tmp_path / "w")]
    status, out, err = _run(*argv, *workspace, capsys=capsys)
    assert status == 2, err
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"attlas {argv[0]}: ")
    assert message in last
    assert "Traceback" not in err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("name", "content"), [("empty.txt", b""), ("latin.txt", b"caf\xe9 " * 500)])
def test_bad_text_is_refused(name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(content)
    status, _, err = _run("entropy", "--text", str(tmp_path / name), "-w", str(tmp_path / "w"), capsys=capsys)
    assert status == 2
    assert name in err.strip().splitlines()[-1]
    assert not (tmp_path / "w").exists()


def _copy_of_gpt2(folder: Path) -> Path:
    shutil.copytree(EMBEDDED_DIR / "gpt2-mini", folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


def test_damaged_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = _copy_of_gpt2(tmp_path / "damaged") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    status, _, err = _run("entropy", "-m", str(tmp_path / "damaged"), "-w", str(tmp_path / "w"), capsys=capsys)
    assert status == 2
    assert "damaged" in err.strip().splitlines()[-1]


def test_nan_in_activations_names_layer_and_hook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = _copy_of_gpt2(tmp_path / "nan") / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if n.endswith("h.2.attn.c_attn.weight"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, weights, metadata={"format": "pt"})
    argv = ["-m", str(tmp_path / "nan"), "--n-tokens", "4096", "--k", "8", "--d-sae", "256"]
    status, _, err = _run("train", "--hooks", "blocks.2.attn.hook_z", *argv, "-w", str(tmp_path / "w"), capsys=capsys)
    assert status == 2, err
    assert "blocks.2.attn.hook_z" in err.strip().splitlines()[-1]
    assert not (tmp_path / "w" / "manifest.json").exists()


def test_a_newer_workspace_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 99, "runs": []}')
    status, _, err = _run("entropy", *SMALL, "-w", str(tmp_path), capsys=capsys)
    assert status == 2
    assert "99" in err
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("verb", ["entropy", "redundancy"])
def test_json_is_all_there_is_on_stdout(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(verb, *SMALL, "-w", str(tmp_path / "w"), "--json", capsys=capsys)
    assert status == 0
    result = json.loads(out)
    manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
    assert [run["id"] for run in manifest["runs"]] == [result["run"]]


def test_doctor_and_models_report(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run("doctor", "--json", capsys=capsys)
    assert status == 0
    assert json.loads(out)["ok"] is True
    status, out, _ = _run("models", "list", "--json", capsys=capsys)
    assert status == 0
    assert {m["name"] for m in json.loads(out)["models"]} >= {"gpt2-mini", "vit-mini"}
    status, _, _ = _run("models", capsys=capsys)
    assert status == 0


def test_the_page_of_tables_is_up_to_date() -> None:
    text = (ROOT / "docs" / "workspace.md").read_text(encoding="utf-8")
    assert updated(text) == text, "run `make docs`"

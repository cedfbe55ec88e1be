"""`attlas doctor` looks at all that pyproject.toml asks for and ends with status 1 when something is to be mended."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from attlas.cli import doctor, main
from attlas.data.files import sha256_file
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.workspace import Ref, Workspace

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))


def checked(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, dict[str, Any]]]:
    capsys.readouterr()
    status = main(["doctor", "--json", *argv])
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is (status == 0)
    return status, {row["what"]: row for row in told["checks"]}


@pytest.fixture
def _no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_forward", lambda: iter(()))


def names(lines: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~!; ]", line)[0] for line in lines}


def test_every_dependency_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = checked(capsys, "-w", str(tmp_path / "w"))
    assert status == 0, [row for row in rows.values() if row["state"] in doctor.MEND]
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"test"}
    lines = [line for line in importlib.metadata.requires("attlas") or [] if 'extra == "test"' not in line]
    assert len(lines) > 20
    assert names(lines) <= rows.keys()
    assert rows["forward pass"]["state"] == "ok"
    assert rows["text"]["state"] == "ok"
    assert {"gpt2-mini", "vit-mini", "workspace", "cache"} <= rows.keys()


@pytest.mark.usefixtures("_no_forward")
def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usual = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("einops", "onnx"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"dash": "3.1", "gguf": "0.1"}.get(name) or usual(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, rows = checked(capsys, "-w", str(tmp_path / "w"))
    assert status == 1
    assert [rows[name]["state"] for name in ("einops", "onnx", "dash", "gguf")] == [
        "MISSING",
        "absent",
        "UNFIT",
        "unfit",
    ]
    assert rows["einops"]["detail"] == "pip install 'einops>=0.8'"


def test_the_sums_are_those_of_the_files() -> None:
    sums = dict(line.split("  ")[::-1] for line in (EMBEDDED_DIR / "SHA256SUMS").read_text().splitlines())
    root = EMBEDDED_DIR.parent
    files = [p for part in ("models", "text") for p in (root / part).rglob("*") if p.is_file()]
    found = {p.relative_to(root).as_posix(): p for p in files if p.name not in ("README.md", "SHA256SUMS")}
    assert sums == {name: sha256_file(path) for name, path in found.items()}


@pytest.mark.usefixtures("_no_forward")
def test_a_damaged_embedded_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "data"
    ignored = shutil.ignore_patterns("checkpoints", "train.jsonl.gz")
    for part in ("models", "text"):
        shutil.copytree(EMBEDDED_DIR.parent / part, copy / part, ignore=ignored)
    path = copy / "models" / "vit-mini" / "model.safetensors"
    torn = bytearray(path.read_bytes())
    torn[-1] ^= 1
    path.write_bytes(bytes(torn))
    monkeypatch.setattr("attlas.data.models_catalog.EMBEDDED_DIR", copy / "models")
    monkeypatch.setattr("attlas.cli.doctor.EMBEDDED_DIR", copy / "models")
    status, rows = checked(capsys, "-w", str(tmp_path / "w"))
    assert status == 1
    assert rows["vit-mini"]["state"] == "DAMAGED"
    assert "model.safetensors is missing or damaged" in rows["vit-mini"]["detail"]
    assert rows["text"]["state"] == "DAMAGED"  # train.jsonl.gz is gone


@pytest.mark.usefixtures("_no_forward")
def test_a_damaged_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace(tmp_path / "w")
    with workspace.begin("job", model=Ref("m", "0" * 16)) as run:
        run.write("note.txt", lambda path: path.write_text("dear"))
    assert checked(capsys, "-w", str(workspace.path))[1]["runs"]["detail"] == "1 whole"
    workspace.file(run.record, "note.txt").write_text("bear")
    status, rows = checked(capsys, "-w", str(workspace.path))
    assert status == 1
    assert "note.txt' is damaged" in rows["runs"]["detail"]
    (tmp_path / "file").write_text("x")
    status, rows = checked(capsys, "-w", str(tmp_path / "file"))
    assert (status, rows["workspace"]["state"]) == (1, "NOT WRITABLE")

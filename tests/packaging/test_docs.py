"""Code blocks of the README and of docs/ do what they show: Python runs as pasted (with less data), commands parse."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from attlas.cli.common import with_sub_verb
from attlas.dashboard.theme import LIGHT

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALLER = {
    "300_000": "4_096",
    "200_000": "4_096",
    "n_tokens=32_768": "n_tokens=1_024",
    "n_images=200": "n_images=24",
} | {
    "held_out(model)": "held_out(model, n_tokens=1_024)",
    "n_maps=960, n_epochs=5": "n_maps=96, n_epochs=1",
    "n_prompts=32": "n_prompts=4",
    "}] * 100": "}] * 10",
}
FILES = ("features.md", "workspace.md")  # in this order: one writes the run that the other reads


def _blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    return [text for language, text in found if language in languages]


def _commands() -> list[Any]:
    found = []
    for page in PAGES:
        for block in _blocks(page, "", "sh", "bash"):
            for line in block.splitlines():
                if line.startswith("attlas "):
                    found.append(pytest.param(line, id=f"{page.name}: {line.split('#')[0].strip()[:60]}"))
    return found


@pytest.mark.parametrize("line", _commands())
def test_a_command_parses(line: str) -> None:
    _, verb, *argv = shlex.split(line, comments=True)
    module = importlib.import_module(f"attlas.cli.{verb}")
    try:
        tyro.cli(module.Args, args=with_sub_verb(module, argv), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        raise AssertionError(f"does not parse: {line}") from stop


def _shrunk(block: str) -> str:
    for usual, less in SMALLER.items():
        block = block.replace(usual, less)
    return block


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name not in ("README.md", *FILES) and _blocks(p, "python")], ids=str
)
def test_python_runs_as_pasted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in _blocks(page, "python"):
        names: dict[str, Any] = {}
        exec(compile(_shrunk(block), page.name, "exec"), names)
        if "PAGE" in names:  # a page of the dashboard: what it draws before there is anything to show
            assert names["PAGE"].view({"rows": []}, LIGHT) is not None


def test_features_and_the_workspace_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for name in FILES:
        for block in _blocks(ROOT / "docs" / name, "python"):
            exec(compile(_shrunk(block), name, "exec"), names)
        if name == FILES[0]:
            import attlas

            names["found"].save(attlas.Workspace("workspace"), names["model"].ref, names["text"].ref)
    assert names["run"] is not None

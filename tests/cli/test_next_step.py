"""The last line names a command that parses; `--json` is taken by every verb and sub-verb; examples of the help parse."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import tyro

from attlas.cli import VERBS, main
from attlas.cli.common import with_sub_verb

ROOT = Path(__file__).resolve().parents[2]
SUB_VERBS = {
    "models": ("list", "get", "saes"),
    "circuit": ("tasks", "patch", "dla", "trace", "qk", "ablate"),
    "entropy": ("heads", "anatomy", "timeline", "selection", "windows", "cost", "collapse"),
    "export": ("sae", "headvis", "html"),
    "features": ("describe", "survey", "match", "firing"),
    "heads": ("measure", "weights", "effects", "similar", "project", "import"),
    "runs": ("list", "name", "delete", "restore", "purge"),
    "notes": ("list", "write", "export", "import"),
    "vit": ("heads", "pruning", "tokens", "patterns"),
}

NEEDED = {  # what a sub-verb cannot do without
    "models get": ["dinov2-small"],
    "features firing": ["a text"],
    "runs name": ["sae-gpt2-mini-c879ab06", "wide"],
    "runs delete": ["sae-gpt2-mini-c879ab06"],
    "runs restore": ["sae-gpt2-mini-c879ab06"],
    "notes write": ["head/gpt2-mini/3.0"],
    "notes export": ["--to", "notes.json"],
    "notes import": ["notes.json"],
}


def parse(argv: list[str]) -> Any:
    """What `attlas …` makes of its arguments; nothing is run."""
    module = importlib.import_module(f"attlas.cli.{argv[0]}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(
                module.Args, args=with_sub_verb(module, argv[1:]), config=(tyro.conf.OmitArgPrefixes,), prog="attlas"
            )
    except SystemExit as stop:
        raise AssertionError(f"attlas {shlex.join(argv)} does not parse: {said.getvalue()}") from stop


def _help(argv: list[str]) -> str:
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        main([*argv, "--help"])
    return said.getvalue()


def _every() -> list[list[str]]:
    return [[verb, *sub] for verb in VERBS for sub in ([], *([s] for s in SUB_VERBS.get(verb, ())))]


def test_the_sub_verbs_are_these() -> None:
    for verb, names in SUB_VERBS.items():
        assert len(get_args(importlib.import_module(f"attlas.cli.{verb}").Args)) == len(names)


@pytest.mark.parametrize("argv", _every(), ids=" ".join)
def test_json_is_taken_everywhere(argv: list[str]) -> None:
    args = parse([*argv, *NEEDED.get(" ".join(argv), ()), "--json"])
    assert args.json is True


@pytest.mark.parametrize("argv", [["models"], ["circuit"], ["circuit", "tasks"], ["models", "list"]], ids=" ".join)
def test_bare_verbs_answer_in_json(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("next: attlas ")
    parse(shlex.split(last)[2:])


def test_examples_in_the_help_parse() -> None:
    n_found = 0
    for verb in VERBS:
        module = importlib.import_module(f"attlas.cli.{verb}")
        classes = [getattr(part, "__origin__", part) for part in get_args(module.Args)] or [module.Args]
        for documented in classes:
            for line in re.findall(r"(?m)^\s*(?:Example: )?attlas (.+)$", documented.__doc__ or ""):
                parse(shlex.split(line))
                n_found += 1
    assert n_found >= 30


def test_examples_of_trace_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split('circuit trace --prompt "the cat sat on the mat. the cat" --depth 3')) == 0
    assert (
        capsys.readouterr()
        .err.strip()
        .splitlines()[-1]
        .startswith("next: attlas circuit qk --model gpt2-mini --prompt ")
    )


def test_the_next_step_keeps_the_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a place"
    assert main(["entropy", "--n-tokens", "1024", "--seq-len", "64", "-w", str(place)]) == 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"next: attlas entropy anatomy --model gpt2-mini --workspace '{place}'"


def test_after_a_trace_comes_its_strongest_head_on_the_same_prompt() -> None:
    from attlas.cli.next_step import next_line

    args = parse(["circuit", "trace", "--task", "induction", "--row", "3", "--seed", "1"])
    line = next_line("circuit", args, {"heads": ["3.4", "3.0"]})
    capped = next_line("circuit", args, {"heads": ["3.4", "3.0"], "capped_scores": True})  # qk would refuse it
    assert capped == "next: attlas circuit ablate --model gpt2-mini --task induction --row 3 --seed 1 --parts 3.4@-1"
    said = "next: attlas circuit qk --model gpt2-mini --task induction --row 3 --seed 1 --layer 3 --head 4"
    assert line == said
    bare = next_line("circuit", parse(["circuit", "qk", "--task", "induction"]), {"layer": 3, "head": 4})
    assert bare is not None
    assert bare.endswith("--parts 3.4@-1")
    asked = next_line("circuit", parse(shlex.split(said)[2:]), {})
    assert asked == said.replace("qk", "ablate").replace("--layer 3 --head 4", "--parts 3.4@-1")


def test_every_next_step_parses() -> None:
    from attlas.cli.next_step import next_line

    results: dict[str, dict[str, Any]] = {"models": {"name": "dinov2-small"}, "doctor": {"ok": True}}
    for argv in _every():
        args = parse([*argv, *NEEDED.get(" ".join(argv), ())])
        result = {"models": []} if argv in (["models"], ["models", "list"]) else results.get(argv[0], {})
        line = next_line(argv[0], args, result)
        if argv[0] in ("serve", "bench"):
            assert line is None
        else:
            assert line is not None
            parse(shlex.split(line)[2:])


def test_a_reader_that_goes_is_met_quietly() -> None:
    """`attlas … | head -1`: no traceback, neither of a usage error nor of help that is cut off."""
    code = "import sys; sys.stdin.readline(); from attlas.cli import main; sys.exit(main(sys.argv[1:]))"
    for argv in (["entropy", "--no-such-option"], ["prune", "--help"], ["models"]):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        said = process.stderr.read()
        process.wait()
        assert "Traceback" not in said, said
        assert "BrokenPipe" not in said, said

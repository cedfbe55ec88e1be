"""Sub-verbs: each shows and takes every setting of its analysis, and none of another's; older spellings still work."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import tyro

from attlas.analyses import attention, features, stability, vit
from attlas.cli import VERBS as VERB_NAMES
from attlas.cli import main
from attlas.cli.common import with_sub_verb
from attlas.data.workspace import Workspace

CONFIGS: dict[tuple[str, str], Any] = {
    ("entropy", "heads"): attention.EntropyConfig,
    ("entropy", "anatomy"): attention.AnatomyConfig,
    ("entropy", "timeline"): attention.TimelineConfig,
    ("entropy", "selection"): attention.SelectionConfig,
    ("entropy", "windows"): attention.WindowConfig,
    ("entropy", "cost"): attention.CostConfig,
    ("entropy", "collapse"): stability.CollapseConfig,
    ("features", "describe"): features.FeaturesConfig,
    ("features", "survey"): features.HeadSurveyConfig,
    ("features", "match"): features.MatchingConfig,
    ("vit", "heads"): vit.VitConfig,
    ("vit", "pruning"): vit.VitPruningConfig,
    ("vit", "tokens"): vit.VitTokensConfig,
    ("vit", "patterns"): vit.VitPatternsConfig,
}
WITHOUT_CONFIG = {("features", "firing")}  # these run no analysis that is saved
# field → another value than the default, where the type alone does not say which would do
OTHERS: dict[str, Any] = {
    "models": ("lm",),
    "methods": ("baseline",),
    "exclude_tokens": ("eos",),
    "measure": ("strength",),
    "ablations": ("resample", "mean"),
    "ablation": "mean",
    "fractions": (0.0, 0.25),
    "frame": "grid",
    "layout": "pca",
}
VERBS = sorted({verb for verb, _ in CONFIGS})


def parse(verb: str, *argv: str) -> Any:
    module = importlib.import_module(f"attlas.cli.{verb}")
    with contextlib.redirect_stderr(io.StringIO()):
        return tyro.cli(module.Args, args=with_sub_verb(module, argv), config=(tyro.conf.OmitArgPrefixes,))


def test_to_is_a_place_to_write_in_every_verb() -> None:
    """An option of this name takes a path wherever there is one; export's older one, the format, is understood."""
    found, todo = {}, [(verb, importlib.import_module(f"attlas.cli.{verb}").Args) for verb in VERB_NAMES]
    while todo:
        verb, args = todo.pop()
        if dataclasses.is_dataclass(args):
            found |= {(verb, field.name): str(field.type) for field in dataclasses.fields(args) if field.name == "to"}
        else:  # a union of sub-verbs, or one of them with its name
            todo += [(verb, inner) for inner in typing.get_args(args)]
    assert {verb for verb, _ in found} == {"capture", "export", "notes"}
    assert all(re.match(r"(Annotated\[)?(Path|Folder)\b", kind) for kind in found.values()), found


@pytest.mark.parametrize(
    ("older", "form", "to"),
    [
        (["--to", "sparsify"], "sparsify", "exported"),
        (["--to=sparsify", "-o", "x"], "sparsify", "x"),
        (["--to", "original", "--to-folder", "x"], "original", "x"),
        (["--folder", "saelens"], "saelens", "saelens"),
        (["--format", "original", "--to", "here"], "original", "here"),
        (["--to=here"], "saelens", "here"),
        (["--sae", "saelens", "--to", "here"], "saelens", "here"),
    ],
)
def test_export_understands_both_spellings(older: list[str], form: str, to: str) -> None:
    args = parse("export", *older)
    assert (args.format, args.to) == (form, Path(to))


def options(verb: str, *argv: str) -> set[str]:
    """Options that the help shows, as names of fields."""
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        main([verb, *argv, "--help"])
    shown = re.findall(r"(?m)^[│ ] {1,2}(?:-\w(?: \w+)?, )?--([\w-]+)", said.getvalue())
    return {name.replace("-", "_") for name in shown}


def _fields(config: Any) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(config)}


def _other(name: str, default: Any) -> Any:
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(default, tuple):
        return tuple(value + 1 for value in default) or (1,)
    if isinstance(default, float):
        return default / 2
    return 3 if default is None else default + 1


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_above_is_whole(verb: str) -> None:
    module = importlib.import_module(f"attlas.cli.{verb}")
    named = [name for name in module.SUB_VERBS if (verb, name) not in WITHOUT_CONFIG]
    assert named == [name for of, name in CONFIGS if of == verb]
    for name in named:
        assert type(parse(verb, name)).__name__.lower() == name


@pytest.mark.parametrize(("verb", "name"), CONFIGS)
def test_help_shows_every_setting_and_no_other_sub_verbs(verb: str, name: str) -> None:
    own = set(_fields(CONFIGS[verb, name]))
    args = parse(verb, name)
    shown = options(verb, name)
    assert own <= shown
    assert shown <= {"help"} | own | {f.name for f in dataclasses.fields(args)}
    assert "config" not in shown


def test_settings_stay_with_their_sub_verb() -> None:
    for name, alone in (
        ("windows", "sinks"),
        ("cost", "lengths"),
        ("timeline", "checkpoints"),
        ("collapse", "qk_gain"),
    ):
        having = [sub for verb, sub in CONFIGS if verb == "entropy" and alone in options(verb, sub)]
        assert having == [name]
    assert "n_tokens" not in options("entropy", "cost")
    assert {"model", "revisions"} <= options("entropy", "timeline")


@pytest.mark.parametrize(("verb", "name"), CONFIGS)
def test_every_setting_reaches_the_configuration(verb: str, name: str) -> None:
    config = CONFIGS[verb, name]
    asked = {field: _other(field, default) for field, default in _fields(config).items()}
    argv = []
    for field, value in asked.items():
        values = value if isinstance(value, tuple) else (value,)
        argv += [f"--{field.replace('_', '-')}", *map(str, values)]
    found = parse(verb, name, *argv).config
    assert found == config(**asked)
    assert all(getattr(found, field) != default for field, default in _fields(config).items())


@pytest.mark.parametrize(
    ("verb", "older", "today"),
    [
        ("entropy", [], ["heads"]),
        ("entropy", ["-m", "vit-mini"], ["heads", "-m", "vit-mini"]),
        ("entropy", ["window-loss", "--sinks", "2"], ["windows", "--sinks", "2"]),
        ("entropy", ["collapse-demo", "--qk-gain", "2"], ["collapse", "--qk-gain", "2"]),
        ("entropy", ["-m", "vit-mini", "window-loss", "--json"], ["windows", "-m", "vit-mini", "--json"]),
        ("entropy", ["--json", "cost"], ["cost", "--json"]),
        ("entropy", ["--checkpoints", "D"], ["timeline", "--checkpoints", "D"]),
        ("entropy", ["--seed", "1", "--checkpoints=D"], ["timeline", "--seed", "1", "--checkpoints", "D"]),
        (
            "entropy",
            ["collapse-demo", "--demo-models", "vit", "lm", "--demo-steps=7", "--seeds", "3"],
            ["collapse", "--models", "vit", "lm", "--vit-steps", "7", "--lm-steps", "7", "--seeds", "3"],
        ),
        (
            "entropy",
            ["-m", "gpt2-mini", "--checkpoints", "D", "--json"],
            ["timeline", "-m", "gpt2-mini", "--checkpoints", "D", "--json"],
        ),
        ("entropy", ["--text", "cost"], ["heads", "--text", "cost"]),
        ("features", ["--checkpoint", "S", "-w", "W"], ["describe", "--checkpoint", "S", "-w", "W"]),
        ("vit", ["-m", "dinov2-small", "patterns"], ["patterns", "-m", "dinov2-small"]),
        ("vit", ["patterns", "--batch-size", "8", "--n-maps", "90"], ["patterns", "--n-maps", "90"]),
        ("vit", ["pruning", "--pruned-to", "mean"], ["pruning", "--ablation", "mean"]),
        ("vit", ["--batch-size", "8"], ["heads", "--batch-size", "8"]),
        ("features", ["-w", "W", "match", "--other", "R"], ["match", "-w", "W", "--other", "R"]),
    ],
)
def test_older_spellings(verb: str, older: list[str], today: list[str]) -> None:
    assert parse(verb, *older) == parse(verb, *today)


def test_an_unknown_sub_verb_or_anothers_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["entropy", "windws"], ["entropy", "cost", "--sinks", "2"], ["entropy", "heads", "--lengths", "8"]):
        with pytest.raises(SystemExit):
            main(argv)
        said = capsys.readouterr().err
        assert any(word in said for word in argv[1:])
        assert "Traceback" not in said


def test_the_bare_verb_is_entropy_of_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for number, sub_verb in enumerate(([], ["heads"])):
        where = ["-w", str(tmp_path / str(number)), "--n-tokens", "512", "--seq-len", "32", "--json"]
        assert main(["entropy", *sub_verb, *where]) == 0
        told.append(json.loads(capsys.readouterr().out))
        (run,) = Workspace(tmp_path / str(number)).runs()
        assert run.id == told[-1].pop("run")
    assert told[0] == told[1]


def test_a_setting_that_had_no_option_changes_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--n-tokens", "256", "--seq-len", "32", "--json", "--top-k", "4", "-w"]
    told = []
    for mass in ("0.9", "0.2"):
        where = tmp_path / mass
        assert main(["entropy", "selection", *few, str(where), "--mass", mass]) == 0
        capsys.readouterr()
        workspace = Workspace(where)
        (run,) = workspace.runs()
        assert run.config["mass"] == float(mass)
        told.append(workspace.read_table(run, "key_share").column("share").to_numpy().mean())
    assert told[1] < told[0]


def test_windows_of_images_are_hops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, given in (((2, 4), []), ((3,), ["--windows", "3"])):
        where = tmp_path / str(len(asked))
        argv = ["entropy", "windows", "-m", "vit-mini", "--n-images", "8", "-w", str(where), "--json", *given]
        assert main(argv) == 0
        capsys.readouterr()
        workspace = Workspace(where)
        table = workspace.read_table(workspace.runs()[0], "window_loss")
        assert set(table.column("window").to_pylist()) == set(asked)

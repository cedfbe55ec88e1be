"""Every verb that writes: a place that cannot be written is said before any work; a finished result is not lost."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attlas import cli
from attlas.cli import main
from attlas.data.workspace import Workspace
from attlas.saes import load_sae

VERBS: dict[str, list[str]] = {
    "demo": [],
    "train": [],
    "eval": [],
    "features": [],
    "features survey": [],
    "entropy": [],
    "entropy anatomy": [],
    "redundancy": [],
    "prune": [],
    "vit": [],
    "circuit patch": [],
    "circuit dla": [],
    "circuit trace": [],
}


TEXT = ["--seq-len", "64", "--text", "embedded:val"]


def full(mount: Callable[[str], Path]) -> Path:
    place = mount("size=512k")
    status = os.statvfs(place)
    (place / "ballast").write_bytes(b"\1" * (status.f_bavail * status.f_frsize))
    return place


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("a model was opened")

    for info in pkgutil.walk_packages(cli.__path__, "attlas.cli."):
        importlib.import_module(info.name)  # none may keep what is patched here
    monkeypatch.setattr("attlas.interp.load_model", refuse)


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_workspace(verb: str, mount: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    place = full(mount)
    assert main([*verb.split(), "--workspace", str(place / "w")]) == 2
    said = capsys.readouterr().err.strip()
    assert "no space left" in said
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize(
    "argv",
    [
        ["capture", "--to", "{}/acts"],
        ["train", "--store", "{}/acts"],
        ["features", "--checkpoint", "{}/state"],
        ["prune", "--drop", "attn:1", "--out", "{}/small"],
        ["circuit", "trace", "--out", "{}/graph.json"],
        ["export", "--folder", "{}/sae"],
        ["models", "get", "smollm2-135m", "--force"],
    ],
    ids=lambda argv: argv[0],
)
@pytest.mark.parametrize("options", ["full", "size=512k,ro"])
def test_other_places(
    argv: list[str],
    options: str,
    mount: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = full(mount) if options == "full" else mount(options)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTLAS_CACHE", str(place / "cache"))
    assert main([part.format(place) for part in argv]) == 2
    said = capsys.readouterr().err.strip()
    assert ("no space left" if options == "full" else "read-only") in said
    assert len(said.splitlines()) == 1
    assert [p.name for p in place.iterdir()] in (["ballast"], [])


def test_a_trained_sae_is_kept(mount: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """No room for checkpoints nor for the SAE: training goes to its end, and the SAE lies on another disk."""
    place = mount("size=600k")
    sizes = ["--n-tokens", "512", "--batch-size", "128", "--buffer-tokens", "256", "--d-sae", "1024", "--k", "4"]
    argv = [
        "train",
        *sizes,
        "--checkpoint-every",
        "2",
        "--seq-len",
        "64",
        "--text",
        "embedded:val",
        "--workspace",
        str(place / "w"),
    ]
    with pytest.warns(UserWarning, match="no checkpoint of step 2: cannot write"):
        assert main(argv) == 1
    said = capsys.readouterr().err
    kept = Path(said.split("the result is whole in '")[1].split("'")[0])
    (run,) = Workspace(kept).runs("sae")
    assert load_sae(kept / "runs" / run.id).cfg.d_sae == 1024
    assert kept.stat().st_dev != place.stat().st_dev
    assert not [p for p in (place / "w").rglob("*") if p.is_file() and p.name.startswith(".checkpoint")]
    shutil.rmtree(kept)


@pytest.mark.usefixtures("quick_strangers")
def test_a_pruned_model_is_kept(
    mount: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint has no room where it was asked for; it lies whole on another disk."""
    place = mount("size=600k")
    argv = ["prune", "--drop", "attn:1", "--n-tokens", "256", "--seq-len", "64", "--calibration-tokens", "256"]
    with pytest.warns(UserWarning, match=r"cannot write .*no space left"):
        assert main([*argv, "--out", str(place / "small"), "--workspace", str(tmp_path / "w")]) == 1
    said = capsys.readouterr().err
    kept = Path(said.split("the result is whole in '")[1].split("'")[0])
    assert (kept / "model.safetensors").is_file()
    assert not list(place.iterdir())
    shutil.rmtree(kept.parent)

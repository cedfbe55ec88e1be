"""`--zero-shot` and `--classes`: verbs that judge images by classes given as text, and the pages that show their runs."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attlas.cli import main
from attlas.cli.options import ClassArgs
from attlas.dashboard.pages.image.jobs import _open
from attlas.dashboard.pages.vit.page import data as vit_data
from attlas.dashboard.reader import WorkspaceReader
from attlas.data.workspace import Workspace
from attlas.interp.labels import class_names
from attlas.interp.vision.zero_shot import TEMPLATES, zero_shot
from tests.interp.tiny_towers import write


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip/ and siglip/, models; pictures/, of two classes; bare/, the same without classes."""
    top = tmp_path_factory.mktemp("zero-shot")
    for name in ("clip", "siglip"):
        write(name, top / name)
    draw = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        for folder in (top / "pictures" / ("cat", "red_dog")[i % 2], top / "bare"):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i}.png")
    return top


SMALL = {
    "vit heads": ["--n-bootstrap", "20", "--ablations", "zero"],
    "vit tokens": ["--remove-at", "1", "--n-bootstrap", "20", "--fractions", "0", "0.5"],
    "vit pruning": ["--max-heads", "1", "--n-candidates", "1", "--n-search", "4", "--n-bootstrap", "20"],
    "heads effects": ["--ablations", "zero"],
    "prune": ["--counts", "1", "--targets", "attn", "--orders", "ranked"],
}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_verbs_take_the_images_classes(name: str, places: Path, tmp_path: Path) -> None:
    shared = [
        "-m",
        str(places / name),
        "--images",
        str(places / "pictures"),
        "--n-images",
        "12",
        "-w",
        str(tmp_path / "w"),
    ]
    for verb, more in SMALL.items():
        assert main([*verb.split(), *shared, "--zero-shot", *more]) == 0, verb
    workspace = Workspace(tmp_path / "w")
    kinds = {run.kind: run for run in workspace.runs()}
    asked = {"classes": ["cat", "red_dog"], "templates": ["a photo of a {}."]}
    assert all(run.config["zero_shot"] == asked for run in kinds.values()), kinds
    assert kinds["vit"].summary["metric"] == "js"
    metrics = {row["metric"] for row in workspace.read_table(kinds["vit"], "importance").to_pylist()}
    assert metrics == {"js", "prob_drop", "accuracy_drop", "cls_distance"}
    assert kinds["vit_tokens"].summary["metric"] == kinds["vit_pruning"].summary["metric"] == "accuracy"
    reader = WorkspaceReader(workspace.path, {name: str(places / name)})
    page = vit_data(reader, {})
    assert (page["zero_shot"], page["metric"]) == (asked, "js")
    seen = _open(reader, name)
    assert class_names(seen) == ("cat", "red_dog")


def test_other_classes_and_refusals(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["vit", "--measure", "importance", "--ablations", "zero", "--n-images", "6", "--n-bootstrap", "20"]
    place = ["-w", str(tmp_path / "w")]
    bare, clip = ["--images", str(places / "bare")], ["-m", str(places / "clip")]
    assert main([*quick, *place, *bare, *clip, "--classes", "cat, dog,owl"]) == 0
    (run,) = Workspace(tmp_path / "w").runs()
    assert run.config["zero_shot"]["classes"] == ["cat", "dog", "owl"]
    for argv, said in (
        ([*quick, *place, *bare, *clip, "--zero-shot"], "names no classes; give them, as --classes cat,dog"),
        ([*quick, *place, "--zero-shot"], "vit-mini has no text tower"),
        (["heads", "effects", *place, "--zero-shot"], "gpt2-mini has no text tower"),
        (["prune", *place, *bare, *clip, "--classes", "a,b", "--drop", "attn:1"], "--zero-shot is for drop curves"),
    ):
        capsys.readouterr()
        assert main(argv) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in told, told


def test_the_default_prompt_is_the_functions() -> None:
    assert ClassArgs().templates == TEMPLATES == inspect.signature(zero_shot).parameters["templates"].default

"""A built wheel works outside the checkout: one top-level name, embedded models as package data."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import attlas
assert attlas.__file__.startswith(sys.argv[1]), attlas.__file__
import attlas.data, attlas.kernels, attlas.interp, attlas.saes, attlas.analyses, attlas.dashboard
for room in (attlas.data, attlas.kernels, attlas.interp, attlas.saes, attlas.analyses, attlas.dashboard):
    assert room.__file__.startswith(sys.argv[1]), room.__file__
model = attlas.load_model("gpt2-mini", device="cpu")
logits, cache = model.run_with_cache(model.to_tokens("The cat"), names="blocks.3.attn.hook_z")
assert cache["blocks.3.attn.hook_z"].shape[2:] == (6, model.cfg.d_head)
assert attlas.load_model("vit-mini", device="cpu").cfg.family == "vit"
from attlas.data.text import read_documents
assert next(read_documents("embedded:val"))
from attlas.cli import main
assert main(["models", "list"]) == 0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the checkout is left as it was."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.decode().split("\0"):
        if name and not name.startswith(("tests/", "notebooks/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return next(target.glob("*.whl"))


def test_the_one_top_level_name_is_attlas(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"attlas"}
    for needed in (
        "attlas/py.typed",
        "attlas/data/models/gpt2-mini/model.safetensors",
        "attlas/data/models/gpt2-mini/checkpoints/step-00250/model.safetensors",
        "attlas/data/models/vit-mini/glyphs-test.npz",
        "attlas/data/models/vit-mini/README.md",
        "attlas/data/text/train.jsonl.gz",
        "attlas/dashboard/assets/attlas.css",
    ):
        assert needed in names, needed


def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(place)
    command = [sys.executable, "-c", PROBE, str(place)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]

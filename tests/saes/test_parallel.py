"""Trainings that two processes share beside the same training alone; what cannot be shared; a process that dies.

One pair of gloo processes does it all (`together`), since starting them takes longer than the rest.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attlas.data.workspace import Workspace
from attlas.saes import ARCHITECTURES
from attlas.saes.training.init import BLOCK, draw

FORMS = ("data", "features")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outputs = []
    for rank in ("0", "1"):
        place = {
            "RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(Path(__file__).with_name("together.py")), str(folder)]
        outputs.append(
            subprocess.Popen(command, env=os.environ | place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    texts = [process.communicate(timeout=500) for process in outputs]
    assert all(process.returncode == 0 for process in outputs), texts[0][1][-3000:] + texts[1][1][-3000:]
    known = json.loads((folder / "found.json").read_text())
    return known | {"stdout": [t[0] for t in texts], "stderr": [t[1] for t in texts], "folder": folder}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_processes_together_equal_one(found: dict[str, Any], arch: str, form: str) -> None:
    """After 16 steps with AuxK, clipping and a global choice; float32 against the fused step of one process."""
    exact, usual = (found["architectures"][f"{arch} {form} {dtype}"] for dtype in ("float64", "float32"))
    assert exact["weights"] < 1e-12
    assert exact["curve"] < 1e-6  # rows of float32
    assert usual["weights"] < 1e-5
    assert usual["curve"] < 1e-4


def test_dead_features_were_revived(found: dict[str, Any]) -> None:
    """Otherwise AuxK was not compared."""
    for arch in ("topk", "batchtopk", "matryoshka", "jumprelu", "gated"):
        assert found["architectures"][f"{arch} features float64"]["dead"] > 0


def test_ties_go_to_the_lower_row_and_feature(found: dict[str, Any]) -> None:
    assert found["ties"]


@pytest.mark.parametrize("form", ["hooks", *FORMS])
def test_a_model_captured_by_two(found: dict[str, Any], form: str) -> None:
    """On gpt2-mini: the SAEs of two hooks, their curve, and a resume with another number of processes both ways."""
    real = found["real"][form]
    assert real["apart"] < 1e-5
    assert real["resumed"] < 1e-5
    assert real["taken over"] < 1e-5
    assert real["rows"]
    assert real["live"] == 6
    assert all(real["configs"])


def test_capture_evaluation_and_features_equal_one_process(found: dict[str, Any]) -> None:
    """Shards by hash and every table to the bit, with batches that two do not divide."""
    assert found["passes"] == {"store": True, "eval": True, "features": True}


def test_what_cannot_be_shared_is_refused(found: dict[str, Any]) -> None:
    says = {"batch": "batch_size=63", "hooks": "1 hooks cannot", "features": "d_sae=65", "k": "k=4 is more than the 3"}
    assert {name: says[name] in text for name, text in found["refusals"].items()} == dict.fromkeys(says, True)
    assert all("\n" not in text for text in found["refusals"].values())


def test_one_process_tells_and_writes(found: dict[str, Any]) -> None:
    assert found["commands"] == {"train": 0, "refused": 2, "left": 2}
    (run,) = Workspace(found["folder"] / "workspace").runs("sae")
    assert found["stdout"][1] == ""
    assert json.loads(found["stdout"][0].splitlines()[0])["runs"] == [run.id]
    lines = [line for text in found["stderr"] for line in text.splitlines() if line.startswith("attlas train: ")]
    assert sorted("a sweep runs in one process" in line for line in lines) == [False, True]  # told once
    assert sum("lost another one" in line for line in lines) == 1


def test_a_part_is_drawn_as_the_whole_would_be() -> None:
    rows = 2 * BLOCK + 777
    whole = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))
    for first, n in ((0, 100), (BLOCK - 3, 10), (rows - 900, 900)):
        part = draw(rows, 5, torch.Generator().manual_seed(1), first, n)
        assert torch.equal(part, whole[first : first + n])

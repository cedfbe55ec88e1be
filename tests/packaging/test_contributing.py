"""The changes that CONTRIBUTING.md shows apply to this tree, one after the other, and what they add works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .import_graph import ROOMS, ROOT

PAGE = ROOT / "CONTRIBUTING.md"
DIFFS = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
USE = """
import sys
from pathlib import Path
import torch
from transformers import GPT2Config, GPT2LMHeadModel
import attlas
from attlas.analyses import attention
from attlas.analyses.registry import TABLES
from attlas.cli import VERBS, main
from attlas.dashboard.app import create_app
from attlas.dashboard.run_kinds import KINDS
from attlas.data.text import load_tokens
from attlas.saes import TrainConfig

root, work = Path(sys.argv[1]), Path(sys.argv[2])
assert Path(attlas.analyses.__file__).is_relative_to(root), attlas.analyses.__file__
model = attlas.load_model("gpt2-mini", device="cpu")
text = load_tokens("embedded:val", model.tokenizer, seq_len=32, n_tokens=512)

config = TrainConfig(arch="logpenalty", d_sae=32, n_tokens=512, batch_size=128, buffer_tokens=512, capture_batch=4)
(sae,) = attlas.train_sae(config, model=model, data=text, progress=False).saes.values()
again = attlas.load_sae(sae.save(work / "sae"))
assert type(again).__name__ == "LogPenaltySAE"
x = torch.randn(3, sae.cfg.d_in)
assert torch.equal(again(x), sae(x))

class ToyConfig(GPT2Config):
    model_type = "toygpt"

class ToyModel(GPT2LMHeadModel):
    config_class = ToyConfig

toy = attlas.load_model(ToyModel(ToyConfig(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=50)).eval())
assert toy.cfg.model_type == "toygpt"
assert toy.capture(torch.arange(9)[None], "*hook_pattern")["blocks.1.attn.hook_pattern"].shape == (1, 2, 9, 9)

found = attention.sinks(model, text)
brute = model.capture(text.tokens, "blocks.2.attn.hook_pattern")["blocks.2.attn.hook_pattern"][:, 4, 1:, 0].mean()
assert abs(found.mass[2, 4] - float(brute)) < 1e-6
assert KINDS.keys() == TABLES.keys()
assert main(["sinks", "--n-tokens", "512", "--seq-len", "32", "-w", str(work / "w")]) == 0
assert "sinks" in VERBS
client = create_app(work / "w").server.test_client()
rows = client.get("/api/sinks").get_json()["rows"]
assert len(rows) == 24
assert abs(rows[2 * 6 + 4]["sink_mass"] - found.mass[2, 4]) < 1e-6
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with every change applied."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    copy = tmp_path_factory.mktemp("tree") / "attlas"
    leave = shutil.ignore_patterns("__pycache__", "models", "text", "assets", ".*")
    for name in (*ROOMS, "attlas", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave, dirs_exist_ok=True)
    for folder in ("data/models", "data/text", "dashboard/assets"):
        (copy / folder).symlink_to(ROOT / folder)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for diff in DIFFS:
        done = subprocess.run(
            ["git", "apply", "-C1"], input=diff, cwd=copy, capture_output=True, text=True, check=False,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)},
        )  # fmt: skip
        assert done.returncode == 0, f"{diff.splitlines()[0]}: {done.stderr}; write the change in CONTRIBUTING.md anew"
    return copy


def test_there_is_one_change_a_kind() -> None:
    headings = re.findall(r"^### (.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(headings) == len(DIFFS) == 5


def test_changes_apply_and_what_they_add_works(changed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE, str(changed), str(tmp_path)],
        cwd=changed, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(changed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_changed_files_follow_the_linter(changed: Path) -> None:
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if ruff is None:
        pytest.skip("no ruff here")
    files = sorted({str(changed / name) for diff in DIFFS for name in re.findall(r"^\+\+\+ b/(.*)$", diff, re.M)})
    for command in (["check"], ["format", "--check"]):
        where = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
        done = subprocess.run([ruff, *command, *where, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

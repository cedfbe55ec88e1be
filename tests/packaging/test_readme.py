"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attlas.cli import VERBS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    smaller = block.replace("300_000", "20_000").replace("16_384", "2_048")
    assert smaller.count("20_000") == smaller.count("2_048") == 1
    names: dict = {}
    exec(compile(smaller, "README.md", "exec"), names)
    cache, sae = names["cache"], names["sae"]
    assert cache["blocks.3.attn.hook_z"].ndim == 4
    assert names["values"].shape[-1] == sae.cfg.k
    assert not names["ablated"].allclose(names["logits"])


def test_links_and_verbs_are_there() -> None:
    for page in ROOT.glob("docs/*.md"):
        for target in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / target).exists(), target
    assert set(re.findall(r"^attlas (\w+)", README, re.M)) <= set(VERBS)

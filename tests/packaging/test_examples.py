"""Every public function, and every public class that is no record, has an example in its docstring; each runs as it stands.

An example has these at hand: `model` (gpt2-mini), `vit_model` (vit-mini), `text` (8 rows of 24 tokens), `images` (8 glyphs),
`sae` and `vit_sae` (small autoencoders on `hook`), `task` (two induction prompts), `checkpoints`, `folder` (an empty one),
`torch` and `np`.
"""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attlas
from attlas.analyses.tasks import TaskConfig, make_task
from attlas.data.checkpoints import find_checkpoints
from attlas.data.images import ImageDataset
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.saes import TrainConfig, train_sae

from .import_graph import ROOT, modules

WINGS = sorted(f"attlas.analyses.{path.parent.name}" for path in (ROOT / "analyses").glob("*/__init__.py"))
FACES = ("attlas", "attlas.data", "attlas.data.images", "attlas.interp", "attlas.kernels", "attlas.saes", *WINGS)
HOOK = "blocks.2.attn.hook_z"
FLAGS = doctest.ELLIPSIS
EXEMPT: dict[str, str] = {}
"""Public functions without an example, and why."""


def _public() -> dict[str, Callable[..., Any]]:
    """Where it is defined → function, or class that is no record (a dataclass), of every face."""
    found = {}
    for face in FACES:
        module = importlib.import_module(face)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or (inspect.isclass(value) and not dataclasses.is_dataclass(value)):
                found[f"{value.__module__}.{value.__name__}"] = value
    return found


PUBLIC = _public()


def _others() -> Iterator[tuple[str, doctest.DocTest]]:
    """Examples of what is not public, with the names of their own module."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name, found in modules().items():
        if ">>>" not in (ROOT / found.path).read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(name)
        for test in finder.find(module, name):
            if test.examples and test.name not in PUBLIC:
                yield test.name, test


def _run(test: doctest.DocTest) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.fixture(scope="module")
def at_hand(
    gpt2_mini: HookedModel, vit_mini: HookedModel, val_tokens: TokenDataset, glyphs: ImageDataset
) -> dict[str, Any]:
    text = TokenDataset.from_tokens(val_tokens.tokens[:8, :24].contiguous(), "embedded:val")
    images = glyphs.take(8)
    small = TrainConfig(hooks=(HOOK,), k=4, d_sae=32, n_tokens=256, batch_size=64, buffer_tokens=256)
    return {
        "attlas": attlas,
        "np": np,
        "torch": torch,
        "model": gpt2_mini,
        "vit_model": vit_mini,
        "text": text,
        "images": images,
        "hook": HOOK,
        "sae": train_sae(small, model=gpt2_mini, data=text, progress=False).saes[HOOK],
        "vit_sae": train_sae(small, model=vit_mini, data=images, progress=False).saes[HOOK],
        "task": make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=2, min_accuracy=0)),
        "checkpoints": find_checkpoints(EMBEDDED_DIR / "gpt2-mini" / "checkpoints")[::9],
    }


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_what_is_public_has_an_example_that_runs(
    name: str, at_hand: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    if name in EXEMPT:
        assert ">>>" not in text, f"{name} has an example: take it out of EXEMPT"
        pytest.skip(EXEMPT[name])
    assert "Example:\n" in text, f"{name} has no example"
    monkeypatch.chdir(tmp_path)  # whatever it writes without a folder
    test = doctest.DocTestParser().get_doctest(text, {**at_hand, "folder": tmp_path}, name, None, 0)
    assert any(PUBLIC[name].__name__ in example.source for example in test.examples), f"{name} is not called"
    assert any(example.want for example in test.examples) or "try:" in text, f"{name}: the example shows no result"
    _run(test)


@pytest.mark.parametrize(("name", "test"), [pytest.param(name, test, id=name) for name, test in _others()])
def test_other_examples_run(name: str, test: doctest.DocTest, at_hand: dict[str, Any], tmp_path: Path) -> None:
    test.globs = {**test.globs, **at_hand, "folder": tmp_path}
    _run(test)


def test_a_wrong_example_fails(at_hand: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(">>> text.tokens.shape\n(8, 25)\n", dict(at_hand), "wrong", None, 0)
    with pytest.raises(AssertionError, match=r"torch.Size\(\[8, 24\]\)"):
        _run(test)

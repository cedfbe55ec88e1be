"""Models and data that many tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attlas.data.images.dataset import ImageDataset, load_images
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.models_fetch import get_model
from attlas.data.text import TokenDataset, load_tokens
from attlas.errors import AttlasError
from attlas.interp import HookedModel, load_model

from .strangers import Strangers

GPT2_DIR = EMBEDDED_DIR / "gpt2-mini"
VIT_DIR = EMBEDDED_DIR / "vit-mini"


# Where the long files are: what is started last should be short, so that the workers end together.
FIRST = ["notebooks", *(f"tests/{part}" for part in ("dashboard", "cli", "analyses", "packaging", "kernels"))]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(config.rootpath).as_posix()
        return next((i for i, folder in enumerate(FIRST) if file.startswith(f"{folder}/")), len(FIRST))

    items.sort(key=place)


def _unit(nodeid: str) -> str:
    """What one worker runs together: a file; of the dashboard, the files that share a workspace, long in the making."""
    file = nodeid.split("::", 1)[0]
    if not file.startswith("tests/dashboard/"):
        return file
    return next((kind for kind in ("circuit", "vit") if kind in file), "dashboard")


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Units(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    return Units(config, log) if config.option.dist == "loadfile" else None


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def gpt2_mini() -> HookedModel:
    return load_model("gpt2-mini", device="cpu")


@pytest.fixture(scope="session")
def vit_mini() -> HookedModel:
    return load_model("vit-mini", device="cpu")


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped-query attention: 3 layers, 6 heads on 2 kv heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # larger than the default, so that attention is far from uniform
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_llama_dir: Path) -> HookedModel:
    return load_model(tiny_llama_dir, device="cpu")


@pytest.fixture(scope="session")
def val_tokens(gpt2_mini: HookedModel) -> TokenDataset:
    """Eight sequences of 128 held-out tokens."""
    return load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=128, n_tokens=8 * 128)


@pytest.fixture(scope="session")
def glyphs(vit_mini: HookedModel) -> ImageDataset:
    return load_images("embedded:glyphs", vit_mini.image_spec, n_images=64)


def _fetched(name: str) -> HookedModel:
    try:
        get_model(name)
    except AttlasError as error:
        pytest.skip(f"{name} cannot be fetched here: {error}")
    return load_model(name, device="cpu")


@pytest.fixture(scope="session")
def smollm2() -> HookedModel:
    return _fetched("smollm2-135m")


@pytest.fixture(scope="session")
def dinov2() -> HookedModel:
    return _fetched("dinov2-small")


@pytest.fixture(scope="session")
def _strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strangers]:
    strangers = Strangers(tmp_path_factory.mktemp("strangers"))
    yield strangers
    strangers.close()


@pytest.fixture
def quick_strangers(_strangers: Strangers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported checkpoints are opened by forks of one process; test_matrix.py opens them in fresh ones."""
    monkeypatch.setattr("attlas.analyses.pruning.reopen.subprocess", SimpleNamespace(run=_strangers.run))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system of its own; needs root."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system cannot be mounted here")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)

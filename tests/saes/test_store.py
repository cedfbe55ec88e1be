"""Activation stores: strangers' folders stay as they are, an interrupted capture goes on, a training takes it over."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from attlas.cli import main
from attlas.data.text import TokenDataset
from attlas.errors import AttlasError, CheckpointError, ConfigError
from attlas.interp import HookedModel
from attlas.saes import TrainConfig, train_sae
from attlas.saes.training import store as module
from attlas.saes.training.store import adopt_store, store_source

HOOKS = ("blocks.1.attn.hook_z", "blocks.3.attn.hook_z")
CONFIG = TrainConfig(hooks=HOOKS, capture_batch=2, n_tokens=512, batch_size=128, buffer_tokens=256, k=4, d_sae=16)


@pytest.fixture(scope="module")
def inputs(val_tokens: TokenDataset) -> TokenDataset:
    return val_tokens


def config_of(folder: Path) -> TrainConfig:
    return dataclasses.replace(CONFIG, store=folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name", ["letter.txt", "manifest.json", "shard-00000.safetensors", ".hidden", "capture.json.bak"]
)
def test_a_strangers_folder_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text('{"name": "my site", "version": 2}')
    before = contents(tmp_path)
    assert main(["capture", "--n-tokens", "512", "--to", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert len(said.strip().splitlines()) == 1
    assert contents(tmp_path) == before


def test_an_interrupted_capture_goes_on(
    gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_source(gpt2_mini, inputs, HOOKS, config_of(tmp_path / "whole"))
    calls: list[Path] = []
    usual = module.save_file

    def failing(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        usual(tensors, path)

    monkeypatch.setattr(module, "save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        store_source(gpt2_mini, inputs, HOOKS, config_of(tmp_path / "cut"))
    with pytest.raises(ConfigError, match="has hooks="):
        store_source(gpt2_mini, inputs, HOOKS[:1], config_of(tmp_path / "cut"))
    (tmp_path / "cut" / "shard-00001.safetensors").write_bytes(b"torn")
    store_source(gpt2_mini, inputs, HOOKS, config_of(tmp_path / "cut"))
    assert len(calls) == 3 + 3  # the first of four shards was whole
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_training_takes_the_store_over(gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path) -> None:
    asked = dataclasses.replace(config_of(tmp_path / "s"), skip_positions=1, activation_dtype="bfloat16", seq_len=128)
    store_source(gpt2_mini, inputs, HOOKS, asked)
    plain = dataclasses.replace(CONFIG, hooks=TrainConfig().hooks, store=tmp_path / "s")
    taken = adopt_store(plain)
    kept = ("hooks", "skip_positions", "activation_dtype", "seq_len")
    assert [getattr(taken, name) for name in kept] == [HOOKS, 1, "bfloat16", 128]
    found = train_sae(plain, model=gpt2_mini)
    assert tuple(found.saes) == HOOKS
    assert found.data_ref == inputs.ref
    one = train_sae(dataclasses.replace(plain, hooks=HOOKS[1:]), model=gpt2_mini)  # one of the hooks is enough
    assert tuple(one.saes) == HOOKS[1:]
    with pytest.raises(ConfigError, match=r"--skip-positions 1 --hooks blocks.1.attn.hook_z blocks.3") as refused:
        adopt_store(plain, given={"skip_positions", "hooks"})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 3},
        {"shards": []},
        {"shards": [1]},
        {"shards": [{"file": "../x", "rows": 1, "sha256": ""}]},
        {"hooks": [1]},
        {"hooks": "all"},
        {"settings": [1]},
        {"inputs": None},
        {"model": None},
    ],
)
def test_a_damaged_manifest_is_one_line(
    change: dict, gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    manifest = {"format": 1, "model": "m", "data": "d", "hooks": list(HOOKS), "inputs": 8, "bytes": 1}
    manifest |= {"dtype": "float32", "skip_positions": 0, "shards": [{"file": "a", "rows": 1, "sha256": ""}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    for work in (lambda: adopt_store(config), lambda: store_source(gpt2_mini, inputs, HOOKS, config)):
        with pytest.raises(CheckpointError, match=next(iter(change))):
            work()
    (tmp_path / "manifest.json").write_text("[1, 2")
    with pytest.raises(AttlasError, match="damaged"):
        adopt_store(config)


def test_capture_then_train_at_the_first_try(tmp_path: Path) -> None:
    store, workspace = tmp_path / "activations", tmp_path / "w"
    assert main(["capture", "--n-tokens", "600", "--seq-len", "64", "--to", str(store)]) == 0
    sizes = ["--n-tokens", "512", "--batch-size", "128", "--buffer-tokens", "256", "--d-sae", "16", "--k", "4"]
    assert main(["train", "--store", str(store), *sizes, "--hooks", "blocks.2.*hook_z", "-w", str(workspace)]) == 0
    assert main(["train", "--store", str(store), *sizes, "--skip-positions", "0", "-w", str(workspace)]) == 2


def test_a_models_folder_is_recorded_absolutely(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An evaluation from another folder finds the model that a relative path named."""
    from attlas.cli.inputs import model_of
    from attlas.data.workspace import Ref, Run

    monkeypatch.chdir(tiny_llama_dir.parent)
    config = adopt_store(TrainConfig(model=tiny_llama_dir.name))
    assert config.model == str(tiny_llama_dir.resolve())
    assert adopt_store(config) == config
    assert adopt_store(TrainConfig()).model == "gpt2-mini"
    run = Run("sae-x", "sae", Ref("x", "0"), config={"model": config.model})
    monkeypatch.chdir(tmp_path)
    assert model_of(run, "gpt2-mini", "gpt2-mini") == config.model
    assert model_of(run, "other", "gpt2-mini") == "other"
    gone = dataclasses.replace(run, config={"model": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=r"sae-x.*which is not there; give --model"):
        model_of(gone, "gpt2-mini", "gpt2-mini")

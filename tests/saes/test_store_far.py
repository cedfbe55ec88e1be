"""Activation stores behind URLs: the shards of a local one, whole or not there, checked as they are read; in fsspec's memory
and on a server of S3's interface on this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from attlas.cli import main
from attlas.data.remote.place import place_of
from attlas.data.text import TokenDataset
from attlas.errors import CheckpointError, ConfigError, StorageError
from attlas.interp import HookedModel
from attlas.saes import TrainConfig, train_sae
from attlas.saes.training import store as module
from attlas.saes.training.store import read_manifest, store_source

HOOKS = ("blocks.0.attn.hook_z",)
CONFIG = TrainConfig(hooks=HOOKS, capture_batch=2, n_tokens=256, batch_size=64, buffer_tokens=128, k=4, d_sae=16)


@pytest.fixture(scope="module")
def inputs() -> TokenDataset:
    generator = torch.Generator().manual_seed(0)
    return TokenDataset.from_tokens(torch.randint(3, 4000, (8, 32), generator=generator), "drawn")


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://attlas-store/inner"
    system = fsspec.filesystem("memory")
    if system.exists("/attlas-store"):
        system.rm("/attlas-store", recursive=True)


def there(folder: str | Path) -> dict[str, bytes | None]:
    place = place_of(folder)
    return {name: place.read(name) for name in place.names()}


def test_a_far_store_holds_what_a_local_one_does_and_trains_the_same(
    memory: str, gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    usual = {name: getattr(MemoryFileSystem, name) for name in ("pipe_file", "put_file")}

    def pipe(self: Any, path: str, *rest: Any, **given: Any) -> None:
        order.append(path.split("/")[-1])
        usual["pipe_file"](self, path, *rest, **given)

    def put(self: Any, here: str, path: str, *rest: Any, **given: Any) -> None:
        order.append(path.split("/")[-1])
        usual["put_file"](self, here, path, *rest, **given)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe)
    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    places = {"far": memory, "near": tmp_path / "near", "file": f"file://{tmp_path}/file"}
    found = {}
    for name, folder in places.items():
        config = dataclasses.replace(CONFIG, store=folder)
        found[name] = train_sae(config, model=gpt2_mini, data=inputs, progress=False).saes[HOOKS[0]]
        assert there(folder) == there(tmp_path / "near") or name == "far"
    assert there(memory) == there(tmp_path / "near")
    assert order[-1] == "manifest.json"
    assert sorted(there(memory)) == ["manifest.json", *(f"shard-0000{n}.safetensors" for n in range(4))]
    for sae in found.values():
        assert torch.equal(sae.W_dec, found["near"].W_dec)


def test_an_interrupted_far_capture_goes_on(
    memory: str, gpt2_mini: HookedModel, inputs: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, store=memory)
    calls: list[Path] = []
    usual = module.save_file

    def failing(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        usual(tensors, path)

    monkeypatch.setattr(module, "save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        store_source(gpt2_mini, inputs, HOOKS, config)
    assert read_manifest(memory) is None
    assert set(there(memory)) == {"capture.json", "shards.jsonl", "shard-00000.safetensors", "shard-00001.safetensors"}
    with pytest.raises(ConfigError, match="has data="):
        store_source(gpt2_mini, inputs.take(6), HOOKS, config)
    place_of(memory).write_text("shard-00001.safetensors", "torn")
    source = store_source(gpt2_mini, inputs, HOOKS, config)
    assert len(calls) == 3 + 3  # the first of four shards was whole
    assert [len(source(n)[HOOKS[0]]) for n in range(4)] == [62] * 4  # without BOS
    place_of(memory).write_text("shard-00002.safetensors", "torn")
    place_of(memory).remove("shard-00003.safetensors")
    again = store_source(gpt2_mini, inputs, HOOKS, config)
    said = []
    for n in range(4):
        try:
            again(n)
        except CheckpointError as error:
            said.append(str(error))
    assert sorted(line.split("'")[1] for line in said) == [f"{memory}/shard-0000{n}.safetensors" for n in (2, 3)]
    assert all("is damaged or missing" in line for line in said)


def test_strangers_and_places_that_cannot_be_reached(
    memory: str, gpt2_mini: HookedModel, inputs: TokenDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    place_of(memory).write_text("letter.txt", "dear")
    assert main(["capture", "--n-tokens", "64", "--seq-len", "32", "--to", memory]) == 2
    assert "holds 'letter.txt' and no activation store" in capsys.readouterr().err
    assert there(memory) == {"letter.txt": b"dear"}
    place_of(memory).remove("letter.txt")
    place_of(memory).write_text("manifest.json", json.dumps({"format": 1, "shards": 3}))
    with pytest.raises(CheckpointError, match=r"memory://.*manifest\.json': .* is damaged"):
        read_manifest(memory)
    with pytest.raises(StorageError, match=r"nowhere://a.*cannot be reached") as refused:
        train_sae(dataclasses.replace(CONFIG, store="nowhere://a/b"), model=gpt2_mini, data=inputs)
    assert "\n" not in str(refused.value)


def test_a_bucket_of_s3(
    monkeypatch: pytest.MonkeyPatch, gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("s3fs")
    server: Any = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        values = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        values |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir("attlas")
        far, near = "s3://attlas/run/activations", tmp_path / "near"
        for folder in (far, near):
            source = store_source(gpt2_mini, inputs, HOOKS, dataclasses.replace(CONFIG, store=folder))
        assert there(far) == there(near)
        both = [store_source(gpt2_mini, inputs, HOOKS, dataclasses.replace(CONFIG, store=f)) for f in (far, near)]
        assert all(torch.equal(both[0](n)[HOOKS[0]], both[1](n)[HOOKS[0]]) for n in range(4))
        assert sum(len(source(n)[HOOKS[0]]) for n in range(4)) == 8 * 31
        place_of(far).write_text("shard-00000.safetensors", "torn")
        torn = store_source(gpt2_mini, inputs, HOOKS, dataclasses.replace(CONFIG, store=far))
        with pytest.raises(CheckpointError, match=f"'{far}/shard-00000.safetensors' is damaged or missing"):
            [torn(n) for n in range(4)]
        for command in (["capture", "--n-tokens", "128", "--to"], ["train", "-w", str(tmp_path / "w"), "--store"]):
            assert main([*command, "s3://nobodys/a"]) == 2
            said = capsys.readouterr().err.strip()
            assert "'s3://nobodys/a" in said
            assert "cannot be reached" in said
            assert len(said.splitlines()) == 1
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()

"""Capture ahead of training: the same chunks, errors where they belong, a thread that ends, streams in the right order."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.saes import TrainConfig, train_sae
from attlas.saes.training import ahead as module
from attlas.saes.training.ahead import AheadSource, SideStream
from attlas.saes.training.clock import Clock

from .stopped import StopAfter, StopError

CPU = torch.device("cpu")
HOOK = "blocks.0.attn.hook_z"


def running() -> bool:
    return "attlas-capture" in {thread.name for thread in threading.enumerate()}


def test_chunks_come_in_order_and_begin_anew_where_asked() -> None:
    made: list[tuple[int, str]] = []

    def source(chunk: int) -> dict[str, torch.Tensor]:
        made.append((chunk, threading.current_thread().name))
        return {"a": torch.full((2, 1), float(chunk))}

    ahead = AheadSource(source, 2, CPU)
    assert [float(ahead(n)["a"][0]) for n in (0, 1, 2, 17, 18, 3)] == [0, 1, 2, 17, 18, 3]
    assert {name for _, name in made} == {"attlas-capture"}
    assert max(n for n, _ in made if n < 17) <= 3 + 3  # two wait, one is in the making
    ahead.close()
    assert not running()
    ahead.close()


def test_an_error_comes_with_its_chunk_and_is_tried_again_when_asked() -> None:
    broken = True

    def source(chunk: int) -> dict[str, torch.Tensor]:
        if chunk == 2 and broken:
            raise ConfigError("shard 2 is damaged")
        return {"a": torch.zeros(1, 1)}

    ahead = AheadSource(source, 4, CPU)
    ahead(0), ahead(1)
    with pytest.raises(ConfigError, match="shard 2"):
        ahead(2)
    assert not running()
    broken = False
    assert len(ahead(2)["a"]) == 1
    ahead.close()


def test_waiting_is_charged_to_the_model() -> None:
    clock, released = Clock(), threading.Event()

    def source(chunk: int) -> dict[str, torch.Tensor]:
        if chunk:
            released.wait(5)
        return {"a": torch.zeros(1, 1)}

    ahead = AheadSource(source, 1, CPU, clock)
    ahead(0)
    clock.restart()
    threading.Timer(0.05, released.set).start()
    with clock.on("data"):
        ahead(1)
    shares = clock.shares()
    assert shares["model_fraction"] > 0.8 > shares["data_fraction"]
    ahead.close()


class _Cuda:
    """Notes what is asked of streams, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _stream(self, name: str) -> Any:
        def note(what: str) -> Any:
            return lambda *given: self.seen.append(f"{name} {what} {' '.join(map(str, given))}".strip())

        return SimpleNamespace(
            wait_stream=lambda other: note("waits for")(other.name),
            wait_event=note("waits for"),
            record_event=lambda: (note("records")(), f"event of {name}")[1],
            name=name,
        )

    def Stream(self, device: Any) -> Any:
        return self._stream("side")

    def current_stream(self, device: Any) -> Any:
        return self._stream("main")

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.seen.append(f"into {stream.name}")
        yield
        self.seen.append(f"out of {stream.name}")


def test_on_a_gpu_the_main_stream_waits_for_the_side_one() -> None:
    cuda = _Cuda()
    rows = SimpleNamespace(
        device=torch.device("cuda"), record_stream=lambda stream: cuda.seen.append(f"rows are of {stream.name}")
    )

    def source(chunk: int) -> Any:
        cuda.seen.append(f"capture {chunk}")
        return {"a": rows}

    ahead = AheadSource(source, 1, torch.device("cuda"), cuda=cuda)
    assert cuda.seen == ["side waits for main"]
    ahead(0)
    ahead.close()
    first = cuda.seen[1:5]
    assert first == ["into side", "capture 0", "side records", "out of side"]
    taken = [line for line in cuda.seen[5:] if line.startswith(("main", "rows"))]
    assert taken == ["main waits for event of side", "rows are of main"]


def test_copies_for_a_store_are_pinned_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, pinned = torch.empty, []

    def unpinned(*shape: Any, pin_memory: bool = False, **given: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **given)

    monkeypatch.setattr(module.torch, "empty", unpinned)
    rows = {"a": torch.randn(5, 3), "b": torch.randn(4, 5).t()}
    held, event = SideStream(torch.device("cuda"), _Cuda()).to_host(rows, torch.bfloat16)
    assert pinned == [True, True]
    assert event == "event of side"
    plain, nothing = SideStream(CPU).to_host(rows, torch.bfloat16)
    assert nothing is None
    for name in rows:
        assert torch.equal(held[name], plain[name])
        assert held[name].is_contiguous()


def test_a_training_ends_with_the_same_weights_after_an_interruption_too(
    gpt2_mini: HookedModel, tmp_path: Path
) -> None:
    tokens = torch.randint(3, 4000, (12, 32), generator=torch.Generator().manual_seed(0))
    data = TokenDataset.from_tokens(tokens, "drawn")
    sizes = {"k": 4, "d_sae": 32, "n_tokens": 512, "batch_size": 64, "buffer_tokens": 128, "capture_batch": 2}
    plain, ahead = (TrainConfig(hooks=(HOOK,), checkpoint_every=3, capture_ahead=n, **sizes) for n in (0, 2))
    want = train_sae(plain, model=gpt2_mini, data=data, progress=False)
    found = train_sae(ahead, model=gpt2_mini, data=data, progress=False)
    assert not running()

    with pytest.raises(StopError):
        train_sae(ahead, model=gpt2_mini, data=data, folder=tmp_path, track=StopAfter(5))
    assert not running()
    resumed = train_sae(ahead, model=gpt2_mini, data=data, folder=tmp_path, resume=True, progress=False)
    for result in (found, resumed):
        for name, weight in want.saes[HOOK].state_dict().items():
            assert torch.equal(result.saes[HOOK].state_dict()[name], weight), name
    assert sum(row["model_fraction"] for row in found.history.rows) > 0
    with pytest.raises(ConfigError, match="capture_ahead=-1 must be at least 0"):
        TrainConfig(capture_ahead=-1)

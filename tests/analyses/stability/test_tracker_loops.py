"""The tracker where loops are unusual: two ranks, models that move, batches of one token, changing lengths."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attlas.analyses.stability.alerts import AlertConfig
from attlas.analyses.stability.layers import attention_layers
from attlas.analyses.stability.tracker import EntropyTracker
from attlas.interp import HookedModel

RANK = Path(__file__).with_name("ddp_rank.py")


def test_two_ranks_are_one_training(tmp_path: Path) -> None:
    """Weights, σReparam's buffers and the tracker's rows of two gloo ranks equal those of one process with all the data."""
    outs = [tmp_path / f"rank{rank}.pt" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, str(RANK), str(tmp_path / "store"), str(rank), "2", str(out)])
        for rank, out in enumerate(outs)
    ]
    spec = importlib.util.spec_from_file_location("ddp_rank", RANK)
    assert spec is not None
    assert spec.loader is not None
    alone_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone_module)
    alone: dict[str, Any] = alone_module.train(0, 1)
    try:
        assert [process.wait(timeout=180) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    found: list[dict[str, Any]] = [torch.load(out, weights_only=True) for out in outs]
    for rank in found:
        for name, value in alone["state"].items():
            torch.testing.assert_close(rank["state"][name], value, atol=1e-5, rtol=1e-4, msg=name)
    for name, value in found[0]["state"].items():
        assert torch.equal(value, found[1]["state"][name]), name
    assert len(alone["rows"]) == 2 * 2
    for mine, rank0, rank1 in zip(alone["rows"], *(rank["rows"] for rank in found), strict=True):
        assert mine["n_queries"] == rank0["n_queries"] == 8 * 5
        for column in ("step", "entropy", "normalized", "q50", "lower_bound", "weight_bound", "sigma_qk", "sigma_o"):
            assert rank0[column] == pytest.approx(mine[column], abs=1e-4), column
            assert rank0[column] == rank1[column], column


def test_one_token_is_no_collapse(gpt2_mini: HookedModel) -> None:
    """Attention over one key has entropy 0 and says nothing of collapse, whether it comes first or later."""
    hf = copy.deepcopy(gpt2_mini.hf).train()
    ids = torch.randint(1, 4096, (2, 16), generator=torch.Generator().manual_seed(0))
    for lengths in ((16, 1, 1, 16), (1, 16, 16, 16)):
        with EntropyTracker(hf, every=1, alerts=AlertConfig(patience=1)) as tracker:
            for length in lengths:
                hf(input_ids=ids[:, :length])
                tracker.step()
        assert tracker.alerts == []
        assert np.nanmin(tracker.monitor.start) > 0.05  # the reference is of a batch with several keys


def test_reference_follows_the_length(gpt2_mini: HookedModel) -> None:
    """Short batches have less entropy than long ones; a head is compared with its start as shares of log T."""
    hf = copy.deepcopy(gpt2_mini.hf).train()
    ids = torch.randint(1, 4096, (2, 200), generator=torch.Generator().manual_seed(0))
    with EntropyTracker(hf, every=1, alerts=AlertConfig(patience=1, collapse=0.4)) as tracker:
        for length in (200, 4, 4, 200):
            hf(input_ids=ids[:, :length])
            tracker.step()
    table = tracker.table().to_pandas()
    first = table[table.layer == 0]
    assert (first[first.step == 1].entropy.to_numpy() < 0.4 * first[first.step == 0].entropy.to_numpy()).any()
    assert [a for a in tracker.alerts if a.layer == 0] == []


def test_model_moves_midway(gpt2_mini: HookedModel) -> None:
    """Between checks, and between a check's forward pass and step(); to the accelerator where there is one."""
    hf = copy.deepcopy(gpt2_mini.hf).train()
    ids = torch.randint(1, 4096, (2, 16), generator=torch.Generator().manual_seed(0))
    there: dict[str, Any] = {"device": "cuda"} if torch.cuda.is_available() else {"dtype": torch.float64}
    back: dict[str, Any] = {"device": "cpu"} if torch.cuda.is_available() else {"dtype": torch.float32}
    with EntropyTracker(hf, every=1) as tracker:
        for place in ({}, there, back):
            if place:
                hf.to(**place)
            hf(input_ids=ids.to(hf.device))
            if place is there:
                hf.to(**back)
                hf.to(**there)
            tracker.step()
    table = tracker.table().to_pandas()
    assert sorted(set(table.step)) == [0, 1, 2]
    for name in ("entropy", "weight_bound", "sigma_qk", "sigma_q", "sigma_o"):
        for step in (1, 2):
            moved = table[table.step == step][name].to_numpy()
            np.testing.assert_allclose(
                moved, table[table.step == 0][name].to_numpy(), rtol=2e-3, atol=1e-5, err_msg=name
            )
    assert tracker._warned == set()


def test_float16_model_whose_keys_overflow() -> None:
    """A projection past float16's 65,504 is infinite: an alert, no exception, and the other layer's numbers stay."""
    model: Any = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0), 2, enable_nested_tensor=False
    )
    model = model.half().train()
    with torch.no_grad():
        model.layers[1].self_attn.in_proj_weight[8:16] = 60_000
        model.layers[0].norm2.bias.fill_(2.0)
    with EntropyTracker(model, every=1) as tracker:
        model(torch.ones(1, 4, 8, dtype=torch.float16) + torch.randn(1, 4, 8).half())
        tracker.step()
    table = tracker.table().to_pandas()
    assert np.isfinite(table[table.layer == 0].entropy).all()
    assert {a.kind for a in tracker.alerts} == {"nonfinite"}
    assert {a.layer for a in tracker.alerts} == {1}


def test_steps_of_generation_are_not_read(gpt2_mini: HookedModel, tiny_llama: HookedModel) -> None:
    """With a key-value cache a step's queries attend to keys that are not among its inputs."""
    for model in (gpt2_mini, tiny_llama):
        (attention, *_), found = attention_layers(model.hf), []

        def read(module: Any, args: Any, kwargs: Any, attention: Any = attention, found: Any = found) -> None:
            found.append(attention.read(module, args, kwargs, 1))

        handle = attention.module.register_forward_pre_hook(read, with_kwargs=True)
        model.hf.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, eos_token_id=None)
        handle.remove()
        assert found[0].k.shape[2] == 3
        assert found[1:] == [None, None]

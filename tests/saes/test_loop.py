"""The training loop, its buffer, checkpoints and starting weights, on made-up activations (no model)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from attlas.data.progress import Silent
from attlas.errors import CheckpointError, ConfigError, NonFiniteError
from attlas.saes import ARCHITECTURES, SAEConfig, TrainConfig
from attlas.saes.activations import Rows
from attlas.saes.training.buffer import MixingBuffer
from attlas.saes.training.checkpoint import NAME, read_checkpoint
from attlas.saes.training.history import TIMES, live_runs
from attlas.saes.training.init import principal_subspace
from attlas.saes.training.loop import train_loop
from attlas.saes.training.trainer import SAETrainer

from .stopped import StopAfter, StopError

HOOKS = ("blocks.0.attn.hook_z", "blocks.1.attn.hook_z")
D_IN, RANK, DIRECTIONS = 16, 6, 24


def planted(chunk: int, poison_from: int = 10**9) -> Rows:
    """Sparse sums of planted directions inside a 6-dimensional subspace, plus a mean; chunk n is always the same."""
    rows = {}
    for i, hook in enumerate(HOOKS):
        world = torch.Generator().manual_seed(100 + i)
        basis = torch.linalg.qr(torch.randn(D_IN, RANK, generator=world)).Q
        directions = torch.nn.functional.normalize(torch.randn(DIRECTIONS, RANK, generator=world), dim=-1) @ basis.T
        here = torch.Generator().manual_seed(chunk * 7 + i)
        f = torch.rand(256, DIRECTIONS, generator=here) * (torch.rand(256, DIRECTIONS, generator=here) < 0.1)
        rows[hook] = 3 * f @ directions + torch.ones(D_IN)
        if chunk >= poison_from:
            rows[hook] = rows[hook] * float("nan")
    return rows


@pytest.fixture(params=[False, True], ids=["autograd", "fused"])
def fused(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def small(**changes: object) -> TrainConfig:
    values = {"arch": "topk", "d_sae": 32, "k": 3, "n_tokens": 3200, "batch_size": 64, "buffer_tokens": 512, "lr": 3e-3}
    return TrainConfig(**{**values, "hooks": HOOKS, "log_every": 5, "checkpoint_every": 20, **changes})


def start(config: TrainConfig, source: object = planted) -> tuple[list[SAETrainer], MixingBuffer]:
    buffer = MixingBuffer(source, config.buffer_tokens, config.seed)  # type: ignore[arg-type]
    sample = buffer.peek(256)
    trainers = [
        SAETrainer.start(
            hook,
            hook,
            config.sae_config(D_IN, hook_name=hook),
            sample[hook],
            seed=config.seed,
            learning_rate=config.learning_rate(D_IN),
            normalise=config.normalise,
            active_subspace=config.active_subspace,
            variance=config.subspace_variance,
            fused=config.fused,
            lazy_adam=config.lazy_adam,
            precision=config.precision,
            clip=config.clip,
        )
        for hook in HOOKS
    ]
    return trainers, buffer


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_learns(arch: str) -> None:
    config = small(arch=arch, n_tokens=19_200, sparsity=0.05)
    trainers, buffer = start(config)
    history = train_loop(trainers, buffer, config)
    for hook in HOOKS:
        rows = history.of(hook)
        assert rows[-1]["explained_variance"] > 0.5
        assert rows[-1]["mse"] < 0.6 * rows[0]["mse"]
        assert [row["step"] for row in rows] == list(range(5, 301, 5))
    x = planted(9999)[HOOKS[0]]
    sae = trainers[0].finish()
    share = (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert share < 0.5  # in units of x itself: the input scale was folded in
    assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_lazy_adam_trains_the_same_sae() -> None:
    trained = []
    for lazy in (False, True):
        config = small(lazy_adam=lazy, dead_after=500)
        trainers, buffer = start(config)
        train_loop(trainers, buffer, config)
        trained.append(trainers[0].sae.state_dict())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, atol=1e-5, rtol=1e-4)


def test_training_in_bfloat16_trains_as_good_an_sae() -> None:
    last = {}
    for precision in ("float32", "bfloat16"):
        config = small(precision=precision)
        trainers, buffer = start(config)
        last[precision] = train_loop(trainers, buffer, config).of(HOOKS[0])[-1]
    assert last["bfloat16"]["mse"] != last["float32"]["mse"]  # products and choice are others
    assert last["bfloat16"]["mse"] == pytest.approx(last["float32"]["mse"], rel=0.02)
    assert last["bfloat16"]["explained_variance"] == pytest.approx(last["float32"]["explained_variance"], abs=0.01)
    for wrong in ({"fused": False}, {"precision": "half"}):
        with pytest.raises(ConfigError, match="precision="):
            small(**{"precision": "bfloat16"} | wrong)


@pytest.mark.parametrize("arch", [*sorted(ARCHITECTURES), "topk without fusing"])
def test_resume_is_bit_equal(arch: str, tmp_path: Path) -> None:
    config = small(arch=arch.split()[0], fused="without" not in arch, dead_after=500)
    straight, buffer = start(config)
    history = train_loop(straight, buffer, config)

    first, buffer = start(config)
    with pytest.raises(StopError):
        train_loop(first, buffer, config, folder=tmp_path, track=StopAfter(33))
    again, buffer = start(config)
    resumed = train_loop(again, buffer, config, folder=tmp_path, resume=True)
    for a, b in zip(straight, again, strict=True):
        for (name, x), y in zip(a.sae.state_dict().items(), b.sae.state_dict().values(), strict=True):
            assert torch.equal(x, y), name
        assert torch.equal(a.tokens_since_fired_F, b.tokens_since_fired_F)
        assert a.sae.hash == b.sae.hash
    timeless = [
        [{k: v for k, v in r.items() if k not in ("tokens_per_second", *TIMES)} for r in h.rows]
        for h in (history, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_resume_refuses_another_configuration(tmp_path: Path) -> None:
    config = small()
    trainers, buffer = start(config)
    train_loop(trainers, buffer, config, folder=tmp_path)
    other = dataclasses.replace(config, k=4)
    trainers, buffer = start(other)
    with pytest.raises(ConfigError, match="has k=3 and this run 4"):
        train_loop(trainers, buffer, other, folder=tmp_path, resume=True)
    (tmp_path / NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is damaged"):
        train_loop(trainers, buffer, other, folder=tmp_path, resume=True)


def test_fused_and_autograd_steps_agree() -> None:
    """Same batches, same losses, same weights up to rounding, dead features and AuxK included."""
    weights, curves = [], []
    for fused in (False, True):
        config = small(n_tokens=1600, fused=fused, dead_after=300, log_every=1)
        trainers, buffer = start(config)
        with torch.no_grad():
            trainers[0].sae.b_enc[:12] -= 3.0
        curves.append(train_loop(trainers, buffer, config).of(HOOKS[0]))
        assert (trainers[0].fused is not None) == fused
        weights.append(trainers[0].finish().state_dict())
    assert curves[0][-1]["dead_fraction"] > 0
    assert max(row["penalty"] for row in curves[0]) > 0
    for a, b in zip(*curves, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["penalty"] == pytest.approx(b["penalty"], rel=1e-2, abs=1e-5)
        assert a["dead_fraction"] == b["dead_fraction"]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-3, rtol=1e-2)


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, fused: bool) -> None:
    config = small(fused=fused, buffer_tokens=128, lr=1e-3)
    trainers, buffer = start(config, lambda chunk: planted(chunk, poison_from=8))
    match = r"'blocks.0.attn.hook_z' became nan at step (\d+); the checkpoint of step 20 in .* is kept; lower"
    with pytest.raises(NonFiniteError, match=match):
        train_loop(trainers, buffer, config, folder=tmp_path)
    found = read_checkpoint(tmp_path)
    assert found is not None
    tensors, values = found
    assert values["step"] == 20
    assert all(torch.isfinite(t).all() for n, t in tensors.items() if "/sae/" in n)


def test_a_checkpoint_never_holds_broken_weights(tmp_path: Path) -> None:
    from attlas.saes.training.checkpoint import save_checkpoint

    config = small()
    trainers, buffer = start(config)
    with torch.no_grad():
        trainers[1].sae.b_enc[3] = float("inf")
    assert not save_checkpoint(tmp_path, 1, trainers, buffer, {}, [])
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(("arch", "weight"), [("topk", 1 / 32), ("gated", 3.0)])
def test_dead_features_are_revived(arch: str, weight: float) -> None:
    """Features pushed out of reach come back with AuxK or the pre-activation loss, and stay dead without."""
    counts = {}
    for coefficient in (0.0, weight):
        config = small(arch=arch, n_tokens=12_800, dead_after=1000, aux_coefficient=coefficient, normalise=False)
        trainers, buffer = start(config)
        with torch.no_grad():
            trainers[0].sae.b_enc[:16] -= 1.0
        train_loop(trainers[:1], buffer, config)
        counts[coefficient] = int(trainers[0].dead(1000)[:16].sum())
    assert counts[weight] < counts[0.0]


def test_silent_tokens_are_counted() -> None:
    config = small()
    (trainer, _), _ = start(config)
    fired = torch.zeros(32, dtype=torch.int64)
    fired[4] = 2
    trainer.count(fired, 64)
    trainer.count(torch.zeros_like(fired), 64)
    assert trainer.tokens_since_fired_F.tolist() == [64 if i == 4 else 128 for i in range(32)]
    assert int(trainer.dead(128).sum()) == 31


def test_live_curve_grows_while_training(tmp_path: Path) -> None:
    config = small()
    seen: list[int] = []

    class Look(Silent):
        def news(self, text: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
            (run,) = live_runs(tmp_path)
            seen.append(len(run.rows))
            assert run.rows[-1] == rows[-1]
            assert rows[-1]["tokens_per_second"] > 0
            assert text.startswith(f"{rows[-1]['tokens_per_second']:,.0f} tokens/s, EV ")

    trainers, buffer = start(config)
    train_loop(trainers, buffer, config, folder=tmp_path / ".training" / "abc", track=Look())
    assert seen == list(range(2, 22, 2))
    path = tmp_path / ".training" / "abc" / "training.jsonl"
    with open(path, "a") as handle:
        handle.write('{"half": ')
    assert len(live_runs(tmp_path)[0].rows) == 20
    assert json.loads(path.read_text().splitlines()[0])["hook"] == HOOKS[0]


# -- buffer ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 40), capacity=st.integers(4, 100), seed=st.integers(0, 5))
def test_buffer_serves_every_row_once_and_hooks_together(chunk: int, capacity: int, seed: int) -> None:
    def source(n: int) -> Rows:
        ids = torch.arange(n * chunk, (n + 1) * chunk).float()
        return {"a": ids[:, None], "b": -ids[:, None].expand(-1, 2)}

    buffer = MixingBuffer(source, capacity, seed)
    size = max(1, capacity // 4)
    batches = [buffer.next_batch(size) for _ in range(12)]
    served = torch.cat([batch["a"][:, 0] for batch in batches])
    assert len(served.unique()) == len(served) == 12 * size
    assert torch.equal(torch.cat([batch["b"][:, 1] for batch in batches]), -served)
    left = set(buffer.rows["a"][:, 0].tolist())
    assert left.isdisjoint(served.tolist())
    assert left | set(served.tolist()) == set(range(buffer.next_chunk * chunk))
    assert buffer.size <= capacity + chunk


def test_buffer_mixes_documents() -> None:
    """A batch holds tokens of many chunks, not of one."""
    buffer = MixingBuffer(lambda n: {"a": torch.full((32, 1), float(n))}, 1024, 0)
    assert len(buffer.next_batch(64)["a"].unique()) > 16


def test_buffer_in_bfloat16_serves_float32() -> None:
    buffer = MixingBuffer(lambda n: {"a": torch.randn(32, 3)}, 64, 0, torch.bfloat16)
    assert buffer.next_batch(8)["a"].dtype == torch.float32
    assert buffer.rows["a"].dtype == torch.bfloat16


# -- starting weights --------------------------------------------------------------------------------------------------


def test_principal_subspace_is_the_planted_one() -> None:
    x = planted(0)[HOOKS[0]]
    basis = principal_subspace(x, 1 - 1e-6)
    assert basis.shape == (RANK, D_IN)
    torch.testing.assert_close(basis @ basis.T, torch.eye(RANK), atol=1e-4, rtol=0)
    centred = x - x.mean(0)
    torch.testing.assert_close(centred @ basis.T @ basis, centred, atol=1e-3, rtol=0)
    assert 1 <= len(principal_subspace(x, 0.5)) < RANK


@pytest.mark.parametrize("active", [False, True])
def test_start_weights(active: bool) -> None:
    trainers, _ = start(small(active_subspace=active, subspace_variance=1 - 1e-6))
    sae, scale = trainers[0].sae, trainers[0].scale
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(32))
    torch.testing.assert_close(2 * sae.W_enc, sae.W_dec.T)
    x = torch.cat([planted(chunk)[HOOKS[0]] for chunk in range(2)])
    basis = principal_subspace(x, 1 - 1e-6)
    outside = (sae.W_dec - sae.W_dec @ basis.T @ basis).norm(dim=-1)
    assert bool((outside < 1e-3).all()) == active
    assert trainers[0].rank == (RANK if active else D_IN)
    sampled = (x * scale).norm(dim=-1).mean()
    assert abs(float(sampled) - D_IN**0.5) < 0.2
    torch.testing.assert_close(sae.b_dec / scale, x.mean(0), atol=0.2, rtol=0)


# -- schedules and configuration ---------------------------------------------------------------------------------------


def test_schedules() -> None:
    config = small(n_tokens=64 * 100, lr_warmup=0.1, lr_decay=0.2, sparsity_warmup=0.5)
    factors = [config.lr_factor(step) for step in range(config.n_steps)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert factors[90] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.06
    assert config.penalty_scale(0) == pytest.approx(0.02)
    assert config.penalty_scale(49) == config.penalty_scale(99) == 1.0
    cosine = dataclasses.replace(config, lr_schedule="cosine")
    assert cosine.lr_factor(55) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"d_sae": 0}, "d_sae=0"),
        ({"expansion": 0}, "expansion=0"),
        ({"n_tokens": 0}, "n_tokens=0"),
        ({"batch_size": 400}, r"buffer_tokens=512 must be at least twice batch_size=400"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"lr_warmup": 1.5}, r"lr_warmup=1\.5"),
        ({"hooks": ()}, "no hook given"),
        ({"subspace_variance": 0.0}, "subspace_variance"),
        ({"skip_positions": 256}, "skip_positions=256"),
    ],
)
def test_bad_training_configurations(change: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        small(**change)


def test_k_beyond_the_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="k=33 must be between 1 and d_sae=32"):
        small(k=33).sae_config(D_IN)
    assert small(arch="standard", k=33).sae_config(D_IN) == SAEConfig(
        d_in=D_IN,
        d_sae=32,
        arch="standard",
        k=32,
        sparsity=ARCHITECTURES["standard"].default_sparsity,
        aux_coefficient=TrainConfig.aux_coefficient,
        bandwidth=TrainConfig.bandwidth,
    )


def test_checkpoint_is_readable_without_attlas(tmp_path: Path) -> None:
    config = small(fused=False)
    trainers, buffer = start(config)
    train_loop(trainers, buffer, config, folder=tmp_path)
    tensors = load_file(tmp_path / NAME)
    assert tensors[f"{HOOKS[0]}/sae/W_dec"].shape == (32, D_IN)
    assert tensors[f"{HOOKS[0]}/adam/W_dec/exp_avg"].shape == (32, D_IN)


def test_notebook_curve_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the figure under the cell is replaced while training runs, the last time at the end."""
    display = pytest.importorskip("IPython.display")
    from attlas.saes.training import notebook_curve as live

    class Handle:
        shown: list[dict] = []  # noqa: RUF012

        def update(self, bundle: dict, raw: bool = False) -> None:
            assert raw  # a bundle in place; anything else is displayed once more
            self.shown.append(bundle)

    assert live.notebook_curve() is None
    monkeypatch.setattr(live, "in_notebook", lambda: True)
    monkeypatch.setattr(live, "REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(display, "display", lambda *args, **kwargs: Handle())
    config = small()
    trainers, buffer = start(config)
    curve = live.notebook_curve()
    assert curve is not None
    train_loop(trainers, buffer, config, track=curve)
    assert len(Handle.shown) == 10
    last = Handle.shown[-1]
    figure = last["application/vnd.plotly.v1+json"]
    assert "50 of 50 steps" in figure["layout"]["title"]["text"]
    assert "50 of 50 steps" in last["text/plain"]
    assert len(figure["data"]) == 8

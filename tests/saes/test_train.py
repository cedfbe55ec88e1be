"""Training on real models: many hooks in one pass, the workspace, sweeps, vision models and bad input."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from attlas.data.text import TokenDataset, load_tokens
from attlas.data.workspace import Workspace
from attlas.errors import CheckpointError, ConfigError, LayerRangeError, NonFiniteError
from attlas.saes import SweepConfig, TrainConfig, TrainResult, load_sae, sweep_saes, train_sae
from attlas.saes.training.sources import model_source
from attlas.saes.training.store import store_source
from attlas.saes.training.sweep import mark_front

if TYPE_CHECKING:
    from attlas.interp import HookedModel

GLOB = "blocks.*.attn.hook_z"
SMALL = TrainConfig(
    hooks=(GLOB,),
    skip_positions=0,
    d_sae=256,
    k=8,
    n_tokens=10_000,
    batch_size=256,
    buffer_tokens=4096,
    lr=3e-3,
    log_every=5,
)


@pytest.fixture(scope="module")
def inputs(gpt2_mini: HookedModel) -> TokenDataset:
    return load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=128, n_tokens=32 * 128)


@pytest.fixture(scope="module")
def result(gpt2_mini: HookedModel, inputs: TokenDataset) -> TrainResult:
    return train_sae(SMALL, model=gpt2_mini, data=inputs)


def test_all_layers_from_one_pass(result: TrainResult, gpt2_mini: HookedModel) -> None:
    assert list(result.saes) == [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
    for hook, sae in result.saes.items():
        cfg = sae.cfg
        assert (cfg.hook_name, cfg.model_name, cfg.model_hash) == (hook, gpt2_mini.name, gpt2_mini.weight_hash)
        assert (cfg.d_in, cfg.n_heads, cfg.d_head, cfg.d_sae, cfg.k) == (192, 6, 32, 256, 8)
        summary = result.summary(hook)
        assert summary["explained_variance"] > 0.3
        assert summary["tokens"] == 40 * 256
        assert 0 < summary["start_rank"] < 192
    assert result.table("blocks.1.attn.hook_z").num_rows == 8
    assert result.table().num_rows == 32
    assert result.plot().data


def test_hooks_together_or_alone_give_the_same_sae(
    result: TrainResult, gpt2_mini: HookedModel, inputs: TokenDataset
) -> None:
    """Sharing a forward pass changes nothing: each SAE equals the one trained on its hook alone."""
    alone = train_sae(dataclasses.replace(SMALL, hooks=("blocks.2.attn.hook_z",)), model=gpt2_mini, data=inputs)
    (sae,) = alone.saes.values()
    together = result.saes["blocks.2.attn.hook_z"]
    torch.testing.assert_close(sae.W_dec, together.W_dec, atol=1e-3, rtol=1e-3)


def test_normalisation_is_folded(result: TrainResult, gpt2_mini: HookedModel, inputs: TokenDataset) -> None:
    """The finished SAE takes activations as they come."""
    hook = "blocks.2.attn.hook_z"
    x = gpt2_mini.capture(inputs.tensor, [hook])[hook]
    sae = result.saes[hook]
    x_hat = sae(x)
    assert x_hat.shape == x.shape
    flat = x.flatten(2).flatten(0, 1)
    share = (x - x_hat).pow(2).sum() / (flat - flat.mean(0)).pow(2).sum()
    assert float(share) < 0.7
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(256), atol=1e-4, rtol=0)


def test_runs_in_the_workspace(result: TrainResult, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    runs = result.save(workspace)
    assert len(runs) == 4
    assert {run.kind for run in runs} == {"sae"}
    for run, (hook, sae) in zip(runs, result.saes.items(), strict=True):
        assert load_sae(workspace.folder(run)).hash == sae.hash
        listed = workspace.run(run.id)
        assert listed.config["hooks"] == [hook]
        assert listed.summary["hash"] == sae.hash
        assert workspace.read_table(run, "training").num_rows == 8
    assert [run.id for run in result.save(workspace)] == [run.id for run in runs]
    assert len(workspace.runs("sae")) == 4


def test_epochs_cover_every_sequence_once(gpt2_mini: HookedModel, inputs: TokenDataset) -> None:
    config = dataclasses.replace(SMALL, capture_batch=10)
    source = model_source(gpt2_mini, inputs, ["blocks.0.attn.hook_z"], config)
    whole = gpt2_mini.capture(inputs.tensor, ["blocks.0.attn.hook_z"])["blocks.0.attn.hook_z"].flatten(2).flatten(0, 1)
    epochs = [torch.cat([source(4 * e + i)["blocks.0.attn.hook_z"] for i in range(4)]) for e in range(2)]
    for rows in epochs:
        assert rows.shape == whole.shape
        torch.testing.assert_close(rows.sum(0), whole.sum(0), atol=1e-2, rtol=1e-3)
    assert not torch.allclose(epochs[0], epochs[1])


def test_bos_can_be_left_out(gpt2_mini: HookedModel, inputs: TokenDataset) -> None:
    config = dataclasses.replace(SMALL, skip_positions=1, capture_batch=4)
    rows = model_source(gpt2_mini, inputs, ["blocks.0.attn.hook_z"], config)(0)["blocks.0.attn.hook_z"]
    assert len(rows) == 4 * 127


def test_a_hugging_face_module_will_do(gpt2_mini: HookedModel, inputs: TokenDataset) -> None:
    config = dataclasses.replace(SMALL, hooks=("blocks.0.attn.hook_z",), n_tokens=1024)
    found = train_sae(config, model=gpt2_mini.hf, data=inputs)
    expected = train_sae(config, model=gpt2_mini, data=inputs)
    torch.testing.assert_close(*(next(iter(r.saes.values())).W_dec for r in (found, expected)), atol=1e-4, rtol=1e-3)


def test_store_on_disk(gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path) -> None:
    """Same activations from disk as from the model; a second run only reads; other data and damage are refused."""
    hook = "blocks.2.attn.hook_z"
    config = dataclasses.replace(SMALL, hooks=(hook,), store=tmp_path / "store", capture_batch=8, n_tokens=5_000)
    first = train_sae(config, model=gpt2_mini, data=inputs)
    source = store_source(gpt2_mini, inputs, [hook], config)
    whole = gpt2_mini.capture(inputs.tensor, [hook])[hook].flatten(2).flatten(0, 1)
    stored = torch.cat([source(i)[hook] for i in range(4)])
    torch.testing.assert_close(stored.sum(0), whole.sum(0), atol=1e-2, rtol=1e-4)
    written = (tmp_path / "store" / "shard-00000.safetensors").stat().st_mtime_ns
    again = train_sae(config, model=gpt2_mini, data=inputs)
    assert again.saes[hook].hash == first.saes[hook].hash
    assert (tmp_path / "store" / "shard-00000.safetensors").stat().st_mtime_ns == written
    other = TokenDataset(inputs.tokens, "other", "1" * 16)
    with pytest.raises(ConfigError, match=r"has data=.*this run needs '1111111111111111'"):
        train_sae(config, model=gpt2_mini, data=other)
    shard = tmp_path / "store" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    with pytest.raises(CheckpointError, match=r"shard-00001.*is damaged or missing"):
        train_sae(config, model=gpt2_mini, data=inputs)


def test_store_refuses_a_full_disk(
    gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    config = dataclasses.replace(SMALL, store=tmp_path / "store", activation_dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"needs 0\.01 GB and the disk has 0\.00 GB free"):
        train_sae(config, model=gpt2_mini, data=inputs)
    assert not (tmp_path / "store").exists()


def test_sweep_marks_the_front(gpt2_mini: HookedModel, inputs: TokenDataset, tmp_path: Path) -> None:
    config = SweepConfig(dataclasses.replace(SMALL, hooks=("blocks.2.attn.hook_z",)), k=(4, 16), seed=(0, 1))
    val = inputs.take(8)
    found = sweep_saes(config, model=gpt2_mini, data=inputs, val=val)
    assert {(r["k"], r["d_sae"], r["seed"]) for r in found.rows} == {(k, 256, s) for k in (4, 16) for s in (0, 1)}
    by_k = {k: max(r["explained_variance"] for r in found.rows if r["k"] == k) for k in (4, 16)}
    assert by_k[16] > by_k[4]
    assert {r["k"] for r in found.rows if r["on_front"]} == {4, 16}
    assert all(0 < r["ce_recovered"] < 1 for r in found.rows)
    run = found.save(tmp_path / "w")
    workspace = Workspace(tmp_path / "w")
    assert workspace.read_table(run, "pareto").num_rows == 4
    name = found.rows[0]["sae"]
    assert load_sae(workspace.folder(run) / "saes" / name).hash == found.saes[name].hash
    assert found.plot().data


def test_front_of_known_points() -> None:
    points = [(8, 0.7), (8, 0.8), (16, 0.75), (16, 0.9), (4, 0.5), (4, 0.5)]
    rows = [{"hook": "h", "l0": l0, "explained_variance": ev} for l0, ev in points]
    assert [row["on_front"] for row in mark_front(rows)] == [False, True, False, True, True, True]


def test_sweep_refuses_axes_without_effect() -> None:
    with pytest.raises(ConfigError, match="λ has no effect on 'topk'"):
        SweepConfig(SMALL, sparsity=(1.0,)).variants()
    with pytest.raises(ConfigError, match="k has no effect on 'gated'"):
        SweepConfig(dataclasses.replace(SMALL, arch="gated"), k=(4,)).variants()


def test_unknown_hooks_and_hooks_without_vectors(gpt2_mini: HookedModel, inputs: TokenDataset) -> None:
    with pytest.raises(LayerRangeError, match=r"'blocks\.7\.attn\.hook_z': layer 7 is out of range 0–3"):
        train_sae(dataclasses.replace(SMALL, hooks=("blocks.7.attn.hook_z",)), model=gpt2_mini, data=inputs)
    with pytest.raises(ConfigError, match="holds no vector a token"):
        train_sae(dataclasses.replace(SMALL, hooks=("blocks.0.attn.hook_pattern",)), model=gpt2_mini, data=inputs)


def test_nan_in_activations_names_the_hook(gpt2_mini: HookedModel, inputs: TokenDataset) -> None:
    def poison(z: torch.Tensor, name: str) -> torch.Tensor:
        return z * float("nan")

    config = dataclasses.replace(SMALL, hooks=("blocks.3.attn.hook_z",))
    with (
        gpt2_mini.hooks({"blocks.1.attn.hook_z": poison}),
        pytest.raises(NonFiniteError, match=r"'blocks\.3\.attn\.hook_z' of 'gpt2-mini' holds NaN"),
    ):
        train_sae(config, model=gpt2_mini, data=inputs)


def test_vision_model(vit_mini: HookedModel) -> None:
    """A classifier of glyphs: trained from the embedded images, evaluated on labels."""
    from attlas.saes import EvalConfig, evaluate
    from attlas.saes.inputs import held_out, load_inputs

    config = dataclasses.replace(SMALL, model="vit-mini", hooks=("blocks.1.attn.hook_z",), n_tokens=20_000)
    found = train_sae(config, model=vit_mini)
    (sae,) = found.saes.values()
    assert sae.cfg.d_in == 96
    assert sae.cfg.context_size is None
    val, seen = held_out(vit_mini), load_inputs(vit_mini, config)
    assert len(val.tensor) + len(seen.tensor) == 2000
    assert not {t.numpy().tobytes() for t in val.tensor} & {t.numpy().tobytes() for t in seen.tensor}
    measured = evaluate(sae, vit_mini, held_out(vit_mini, n_images=100), EvalConfig(controls=("pca",), n_bootstrap=50))
    assert measured.value("explained_variance") > 0.4
    assert measured.value("accuracy_clean") > 0.8
    assert measured.value("accuracy_spliced") > 0.6
    assert measured.value("ce_zero") > measured.value("ce_clean")

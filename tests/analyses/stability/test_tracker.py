"""The tracker in training loops: right numbers, nothing left behind, nothing raised."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import attlas
from attlas.analyses.stability.alerts import Alert, AlertConfig
from attlas.analyses.stability.callbacks import lightning_callback, lightning_callback_class, trainer_callback
from attlas.analyses.stability.site import AttentionSite, Reading
from attlas.analyses.stability.tracker import EntropyTracker, TrackerConfig
from attlas.data.workspace import Ref, Workspace
from attlas.errors import ConfigError, MissingExtraError, UnsupportedModelError
from attlas.interp import HookedModel


def _inputs(model: HookedModel, n: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if model.cfg.family == "vit":
        return {"pixel_values": torch.randn(n, 1, 32, 32, generator=generator)}
    return {"input_ids": torch.randint(1, model.cfg.d_vocab, (n, 24), generator=generator)}


def _loss(hf: Any, inputs: dict[str, Tensor]) -> Tensor:
    return hf(**inputs).logits.float().pow(2).mean()


def _entropy(pattern: Tensor) -> Tensor:
    return -torch.special.xlogy(pattern, pattern).sum(-1)


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama", "vit_mini"])
def test_rows_equal_the_models_own_maps(which: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(which)
    hf, inputs = copy.deepcopy(model.hf).train(), _inputs(model)
    with attlas.EntropyTracker(hf, every=3, n_sequences=3) as tracker:
        for _ in range(5):
            _loss(hf, inputs).backward()
            tracker.step(loss=1.5)
    table = tracker.table().to_pandas()
    assert sorted(set(table.step)) == [0, 3]
    assert (table.loss == 1.5).all()
    first = table[table.step == 0].set_index(["layer", "head"])
    maps = model.capture(next(iter(inputs.values()))[:3], "*hook_pattern")
    for layer in range(model.cfg.n_layers):
        a = maps[f"blocks.{layer}.attn.hook_pattern"].double()
        ent = _entropy(a)
        np.testing.assert_allclose(first.entropy[layer], ent.mean((0, 2)), atol=1e-4)
        quantile = np.quantile(ent.transpose(0, 1).flatten(1).numpy(), 0.25, axis=1, method="inverted_cdf")
        np.testing.assert_allclose(first.q25[layer], quantile, atol=0.0079)
        n = (a > 0).sum(-1) if not model.cfg.causal else torch.arange(1, 25).expand_as(ent)
        keep = n[0, 0] > 1
        np.testing.assert_allclose(
            first.normalized[layer], (ent / n.double().log())[:, :, keep].mean((0, 2)), atol=1e-4
        )
        np.testing.assert_allclose(first.max_weight[layer], a.amax(-1).mean((0, 2)), atol=1e-4)
        w_q = model.W_Q(layer).transpose(0, 1).flatten(1)
        np.testing.assert_allclose(first.sigma_q[layer], float(torch.linalg.matrix_norm(w_q.detach(), 2)), rtol=5e-3)
        w_o = model.W_O(layer).flatten(0, 1)
        np.testing.assert_allclose(first.sigma_o[layer], float(torch.linalg.matrix_norm(w_o.detach(), 2)), rtol=5e-3)
    assert (first.entropy >= first.lower_bound - 1e-6).all()
    assert (first.lower_bound >= first.weight_bound - 1e-6).all()
    assert (first.nonfinite == 0).all()


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_no_hooks_between_checks_nor_after(gpt2_mini: HookedModel) -> None:
    hf, inputs = copy.deepcopy(gpt2_mini.hf).train(), _inputs(gpt2_mini)
    with EntropyTracker(hf, every=3) as tracker:
        assert _hooks(hf) == 4
        _loss(hf, inputs)
        tracker.step()
        assert _hooks(hf) == 0
        with pytest.raises(ConfigError, match="has an EntropyTracker already"):
            EntropyTracker(hf)
    assert _hooks(hf) == 0
    tracker.close()
    EntropyTracker(hf).close()


def test_training_is_not_changed(gpt2_mini: HookedModel) -> None:
    """With dropout and σReparam on, weights after tracked steps equal those of untracked ones."""

    def run(tracked: bool) -> dict[str, Tensor]:
        hf = copy.deepcopy(gpt2_mini.hf).train()
        for module in hf.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        attlas.sigma_reparam(hf, init="preserve")
        optimizer = torch.optim.Adam(hf.parameters(), lr=1e-3)
        tracker = EntropyTracker(hf, every=1, optimizer=optimizer) if tracked else None
        torch.manual_seed(0)
        for _ in range(3):
            _loss(hf, _inputs(gpt2_mini)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if tracker is not None:
            tracker.close()
            assert tracker.summary()["checks"] == 3
        return hf.state_dict()

    plain = run(False)
    for key, value in run(True).items():
        assert torch.equal(value, plain[key]), key


@pytest.mark.parametrize("how", ["outside", "in place", "blocks"])
def test_compiled_models(how: str, gpt2_mini: HookedModel) -> None:
    torch._dynamo.reset()
    hf: Any = copy.deepcopy(gpt2_mini.hf).train()
    called = hf
    if how == "outside":
        called = torch.compile(hf, backend="eager")
    elif how == "in place":
        hf.compile(backend="eager")
    else:
        for block in hf.transformer.h:
            block.compile(backend="eager")
    inputs = _inputs(gpt2_mini)
    with EntropyTracker(called, every=2) as tracker:
        for _ in range(3):
            _loss(called, inputs).backward()
            tracker.step()
    assert all(module.training for module in hf.modules())
    plain = copy.deepcopy(gpt2_mini.hf).train()
    with EntropyTracker(plain) as expected:
        _loss(plain, inputs)
        expected.step()
    found = tracker.table().to_pandas()
    assert sorted(set(found.step)) == [0, 2]
    np.testing.assert_allclose(found.entropy[:24], expected.table().to_pandas().entropy, atol=1e-5)


def test_checkpointing_autocast_accumulation_and_evaluation(gpt2_mini: HookedModel) -> None:
    hf, inputs = copy.deepcopy(gpt2_mini.hf).train(), _inputs(gpt2_mini)
    hf.gradient_checkpointing_enable()
    with EntropyTracker(hf, every=1, n_sequences=8) as tracker:
        hf.eval()
        _loss(hf, {"input_ids": inputs["input_ids"][:, :7]})  # an evaluation in between is not measured
        hf.train()
        for _ in range(2):  # two micro-batches; the first counts
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = _loss(hf, inputs)
            loss.backward()
        tracker.step()
    table = tracker.table().to_pandas()
    assert (table.n_queries == 5 * 24).all()
    with EntropyTracker(copy.deepcopy(gpt2_mini.hf).train(), n_sequences=8) as exact:
        _loss(exact.model, inputs)
        exact.step()
    np.testing.assert_allclose(table.entropy, exact.table().to_pandas().entropy, atol=0.05)  # bfloat16


def test_padding_rows_without_keys_and_single_tokens(gpt2_mini: HookedModel) -> None:
    hf = copy.deepcopy(gpt2_mini.hf).train()
    ids = _inputs(gpt2_mini, 2)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding: the first queries of row 0 have no key
    with EntropyTracker(hf, every=1) as tracker:
        hf(input_ids=ids, attention_mask=mask)
        tracker.step()
        hf(input_ids=ids[:, :1])  # T = 1
        tracker.step()
    table = tracker.table().to_pandas()
    padded, single = table[table.step == 0], table[table.step == 1]
    with EntropyTracker(hf, every=1) as alone:
        hf(input_ids=ids[:1, 4:], position_ids=torch.arange(4, 24)[None])
        alone.step()
        hf(input_ids=ids[1:])
        alone.step()
    parts = alone.table().to_pandas()
    expected = (parts[parts.step == 0].entropy.to_numpy() * 20 + parts[parts.step == 1].entropy.to_numpy() * 24) / 44
    layer0 = slice(0, 6)  # deeper layers differ: what a padded query attends to is up to the model
    np.testing.assert_allclose(padded.entropy[layer0], expected[layer0], atol=1e-4)
    assert (padded.n_queries[layer0] == 44).all()
    assert (single.entropy == 0).all()
    assert single.normalized.isna().all()


@pytest.mark.parametrize("which", ["gpt2_mini", "tiny_llama", "windowed"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_either_side_is_no_query(
    which: str, side: str, attention: str, request: pytest.FixtureRequest
) -> None:
    """Each row's tokens alone, by their own positions, give the same sums."""
    import transformers

    if which == "windowed":
        shape = {"vocab_size": 101, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        config = transformers.MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=1, sliding_window=5)
        hf: Any = transformers.MistralForCausalLM(config)
    else:
        hf = copy.deepcopy(request.getfixturevalue(which).hf)
    hf.set_attn_implementation(attention)
    ids = torch.randint(1, 101, (3, 12), generator=torch.Generator().manual_seed(0))
    lengths = (12, 7, 4)
    mask, places = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        at = slice(0, n) if side == "right" else slice(12 - n, 12)
        mask[row, at], places[row, at] = 1, torch.arange(n)
    with EntropyTracker(hf.train(), every=1) as tracker:
        hf(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
        tracker.step()
    table = tracker.table().to_pandas()
    assert (table.n_queries == sum(lengths)).all()
    parts = []
    with EntropyTracker(hf, every=1) as alone:
        for row in range(3):
            hf(input_ids=ids[row : row + 1, mask[row].bool()], use_cache=False)
            alone.step()
    rows = alone.table().to_pandas()
    for name, weights in (("entropy", lengths), ("max_weight", lengths), ("normalized", [n - 1 for n in lengths])):
        parts = [rows[rows.step == i][name].to_numpy() for i in range(3)]
        np.testing.assert_allclose(table[name], np.average(parts, axis=0, weights=weights), atol=1e-4, err_msg=name)
    bounds = [rows[rows.step == i].weight_bound.to_numpy() for i in range(3)]
    np.testing.assert_allclose(table.weight_bound, np.average(bounds, axis=0, weights=lengths), rtol=1e-3, atol=1e-5)


def test_padding_of_custom_sites() -> None:
    q = torch.randn(2, 2, 5, 4)
    keys = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    keys[1, ..., 3:] = False
    strictly = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(-1)
    readings = {
        7 + 1: Reading(q, q, keys),
        10: Reading(q, q, keys, queries=torch.ones(2, 5, dtype=torch.bool)),  # the queries are another sequence
        2 * 4: Reading(q, q, strictly),  # no token sees itself: the first has no key, and the last is no padding
        3: Reading(q, q, queries=torch.tensor([[True, True, False, False, False], [True] + 4 * [False]])),
    }
    for n, reading in readings.items():
        model = nn.Identity().train()
        sites = [AttentionSite("mine", model, 2, lambda *_, reading=reading: reading)]
        with EntropyTracker(model, every=1, adapter=lambda _, sites=sites: sites) as tracker:
            model(torch.zeros(1))
            tracker.step()
        assert set(tracker.table()["n_queries"].to_pylist()) == {n}


def test_half_precision_logits_that_overflow() -> None:
    """Logits of 1.6e5 are infinite in float16; the tracker's are not."""
    q = torch.full((1, 1, 4, 16), 200.0, dtype=torch.float16)
    k = torch.full((1, 1, 4, 16), 200.0, dtype=torch.float16)

    class Half(nn.Module):
        def forward(self) -> Tensor:
            return q

    def adapter(model: nn.Module) -> Iterable[AttentionSite]:
        return [AttentionSite("half", model, 1, lambda *_: Reading(q, k))]

    model = Half().train()
    with EntropyTracker(model, every=1, adapter=adapter) as tracker:
        model()
        tracker.step()
    row = tracker.table().to_pandas()
    assert row.entropy[0] == pytest.approx(np.log([1, 2, 3, 4]).mean(), abs=1e-3)
    assert np.isnan(row.weight_bound[0])


def test_nonfinite_queries_raise_an_alert_not_an_exception(gpt2_mini: HookedModel) -> None:
    hf = copy.deepcopy(gpt2_mini.hf).train()
    with torch.no_grad():
        hf.transformer.h[1].attn.c_attn.weight[0, 0] = torch.nan
    heard: list[Alert] = []

    def on_alert(alert: Alert) -> None:
        heard.append(alert)
        raise RuntimeError("the user's own function fails")

    with EntropyTracker(hf, every=1, on_alert=on_alert, alerts=AlertConfig(stop=True)) as tracker:
        _loss(hf, _inputs(gpt2_mini)).backward()
        tracker.step()
    assert tracker.should_stop
    assert {a.kind for a in heard} == {"nonfinite"}
    assert (1, 0) in {(a.layer, a.head) for a in heard}
    assert 0 not in {a.layer for a in heard}


def test_collapse_stops_the_loop(gpt2_mini: HookedModel, caplog: pytest.LogCaptureFixture) -> None:
    hf, inputs = copy.deepcopy(gpt2_mini.hf).train(), _inputs(gpt2_mini)
    tracker = EntropyTracker(hf, every=1, alerts=AlertConfig(patience=2, stop=True))
    with caplog.at_level(logging.WARNING, "attlas.tracker"), tracker:
        for step in range(10):
            if step == 3:
                with torch.no_grad():
                    hf.transformer.h[2].attn.c_attn.weight[:, : 2 * 192] *= 12
                    hf.transformer.h[2].attn.c_attn.bias[: 2 * 192] *= 12
            _loss(hf, inputs)
            tracker.step()
            if tracker.should_stop:
                break
    assert step == 4
    assert {(a.kind, a.since) for a in tracker.alerts} == {("collapse", 3)}
    assert {a.layer for a in tracker.alerts} >= {2}
    assert "entropy collapse since step 3" in caplog.text


def test_failures_inside_are_logged_once(gpt2_mini: HookedModel, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> Reading:
        raise ValueError("shape of tomorrow")

    def adapter(model: nn.Module) -> list[AttentionSite]:
        return [AttentionSite("broken", model, 2, broken)]

    model = nn.Linear(3, 3).train()
    with caplog.at_level(logging.WARNING), EntropyTracker(model, every=1, adapter=adapter) as tracker:
        for _ in range(3):
            model(torch.zeros(1, 3))
            tracker.step()
    assert caplog.text.count("shape of tomorrow") == 1
    assert tracker.table().num_rows == 0


def test_parquet_loggers_and_workspace(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    class Board:
        def __init__(self) -> None:
            self.seen: list[tuple[str, float, int]] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.seen.append((tag, value, step))

    class Lost:
        def log(self, values: dict[str, float], step: int) -> None:
            raise ConnectionError("gone")

    hf, board, seen = copy.deepcopy(gpt2_mini.hf).train(), Board(), []
    out = tmp_path / "deep" / "entropy.parquet"
    loggers = [board, Lost(), lambda values, step: seen.append((step, values))]
    with EntropyTracker(hf, TrackerConfig(every=2), out=out, loggers=loggers) as tracker:
        for _ in range(4):
            _loss(hf, _inputs(gpt2_mini))
            tracker.step(loss=torch.tensor(2.0, requires_grad=True))
    assert pq.read_table(out).equals(tracker.table())
    assert pq.read_table(out).schema.field("entropy").metadata[b"unit"] == b"nats"
    assert ("attlas/loss", 2.0, 2) in board.seen
    assert [step for step, _ in seen] == [0, 2]
    assert seen[0][1]["attlas/entropy_min/blocks.2.attn"] <= seen[0][1]["attlas/entropy_mean/blocks.2.attn"]
    run = tracker.save(Workspace(tmp_path / "ws"), Ref("mine", "0"))
    assert Workspace(tmp_path / "ws").read_table(run, "tracker").num_rows == 48
    assert Workspace(tmp_path / "ws").read_table(run, "tracker_alerts").num_rows == 0
    tracker.alerts.append(Alert("collapse", True, 1, 2, 0, 2, 0.01, 0.05))
    run = tracker.save(Workspace(tmp_path / "ws"), Ref("mine", "0"))
    (row,) = Workspace(tmp_path / "ws").read_table(run, "tracker_alerts").to_pylist()
    assert (row["kind"], row["began"], row["head"], row["threshold"]) == ("collapse", True, 2, 0.05)
    assert len(tracker.plot().data) == 24


# -- other modules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_with_masks(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=batch_first).train()
    x = torch.randn(3, 6, 16)
    given = x if batch_first else x.transpose(0, 1)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[0, 4:] = True
    with EntropyTracker(layer, every=1) as tracker:
        _, weights = layer(given, given, given, attn_mask=future, key_padding_mask=padding, average_attn_weights=False)
        tracker.step()
    table = tracker.table().to_pandas()
    real = ~padding
    expected = _entropy(weights.detach().double()).transpose(0, 1)[:, real].mean(1)
    np.testing.assert_allclose(table.entropy, expected, atol=1e-5)
    assert (table.n_queries == 16).all()
    q = layer.in_proj_weight[:16]
    np.testing.assert_allclose(table.sigma_q, float(torch.linalg.matrix_norm(q, 2).detach()), rtol=5e-3)
    assert (table.lower_bound >= table.weight_bound - 1e-6).all()


def test_transformer_encoder_and_cross_attention() -> None:
    model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True).train()
    with EntropyTracker(model, every=1) as tracker:
        model(torch.randn(2, 5, 16), torch.randn(2, 3, 16))
        tracker.step()
    table = tracker.table().to_pandas()
    assert list(dict.fromkeys(table.site)) == [
        "encoder.layers.0.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
    ]
    cross = table[table.site.str.endswith("multihead_attn")]
    assert cross.weight_bound.isna().all()  # its inputs are two sequences
    assert (cross.entropy <= np.log(5) + 1e-6).all()


def test_refusals_name_what_is_not_read() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModelError, match="'bloom' adds ALiBi"):
        EntropyTracker(bloom)

    class FlashAttentionOnly(nn.Module):
        pass

    with pytest.raises(UnsupportedModelError, match="FlashAttentionOnly"):
        EntropyTracker(nn.Sequential(FlashAttentionOnly()))
    with pytest.raises(UnsupportedModelError, match="add_bias_kv"):
        EntropyTracker(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    with pytest.raises(ConfigError, match="every 0"):
        EntropyTracker(nn.MultiheadAttention(8, 2), every=0)
    with pytest.raises(ConfigError, match="evry"):
        EntropyTracker(nn.MultiheadAttention(8, 2), evry=5)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_sliding_windows(kind: str) -> None:
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4, "max_position_embeddings": 32,
    }  # fmt: skip
    if kind == "mistral":
        hf = transformers.MistralForCausalLM(transformers.MistralConfig(**shape, attn_implementation="eager"))
    else:
        config = transformers.Qwen2Config(**shape, use_sliding_window=True, max_window_layers=1)
        config._attn_implementation = "eager"
        hf = transformers.Qwen2ForCausalLM(config)
    ids = torch.randint(1, 40, (2, 12))
    with EntropyTracker(hf.train(), every=1) as tracker:
        maps = hf(input_ids=ids, output_attentions=True).attentions
        tracker.step()
    table = tracker.table().to_pandas()
    for layer, pattern in enumerate(maps):
        found = table[table.layer == layer].entropy
        np.testing.assert_allclose(found, _entropy(pattern.detach().double()).mean((0, 2)), atol=1e-4)


# -- training frameworks -----------------------------------------------------------------------------------------------


def test_hugging_face_trainer(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    ids = _inputs(gpt2_mini, 16)["input_ids"]
    data = [{"input_ids": row, "labels": row} for row in ids]
    callback = trainer_callback(every=2, out=tmp_path / "entropy.parquet", alerts=AlertConfig(patience=1, stop=True))
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-4, logging_strategy="no",
    )  # fmt: skip
    Trainer(model=copy.deepcopy(gpt2_mini.hf), args=args, train_dataset=data, callbacks=[callback]).train()
    assert sorted(set(callback.tracker.table()["step"].to_pylist())) == [0, 2, 4]
    assert not any(len(m._forward_hooks) for m in callback.tracker.model.modules())
    assert pq.read_table(tmp_path / "entropy.parquet").num_rows == 3 * 24


def test_lightning_callback(gpt2_mini: HookedModel) -> None:
    """Against a stand-in for Lightning's loop: on_train_start, on_train_batch_end per micro-batch, on_train_end."""
    if importlib.util.find_spec("lightning") is None and importlib.util.find_spec("pytorch_lightning") is None:
        with pytest.raises(MissingExtraError, match="pip install lightning"):
            lightning_callback()

    class Trainer:
        global_step, should_stop, world_size = 0, False, 1

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(gpt2_mini.hf).train()

    trainer, module = Trainer(), Module()
    callback = lightning_callback_class(object)({"every": 2})
    callback.on_train_start(trainer, module)
    for batch in range(8):
        _loss(module.model, _inputs(gpt2_mini))
        trainer.global_step += batch % 2  # two micro-batches a step
        callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(3.0)}, None, batch)
    callback.on_train_end(trainer, module)
    table = callback.tracker.table().to_pandas()
    assert sorted(set(table.step)) == [0, 2]
    assert (table.loss == 3).all()
    assert _hooks(module) == 0


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("which", ["gpt2_mini", "vit_mini"])
def test_trainer_records_the_loss_it_logs(
    which: str, accumulation: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Language models get num_items_in_batch from the Trainer, classifiers do not; the log is the reference."""
    from transformers import Trainer, TrainingArguments

    model: HookedModel = request.getfixturevalue(which)
    key, rows = next(iter(_inputs(model, 8).items()))
    labels = rows if key == "input_ids" else torch.arange(8) % 4
    data = [{key: row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    callback = trainer_callback(every=1)
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-4, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model=copy.deepcopy(model.hf), args=args, train_dataset=data, callbacks=[callback])
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    table = callback.tracker.table().to_pandas()
    np.testing.assert_allclose(table.groupby("step").loss.first(), logged, rtol=1e-3)

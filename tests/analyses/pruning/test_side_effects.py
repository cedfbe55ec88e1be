"""What a drop takes away, against the definitions written out in float64 and finite differences of the loss."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from attlas.analyses.pruning.side_effects.behaviours import head_losses, task_losses
from attlas.analyses.pruning.side_effects.features import absent
from attlas.analyses.pruning.side_effects.report import SideEffectsConfig, drop_side_effects
from attlas.analyses.tasks.catalog import make_task
from attlas.analyses.tasks.task import TaskConfig
from attlas.cli import main
from attlas.data.images.dataset import ImageDataset
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, masked

LATE, EARLY, SAME = "blocks.2.attn.hook_z", "blocks.0.attn.hook_z", "blocks.1.attn.hook_z"
DROP = Drop(attn=(1,))


@pytest.fixture(scope="module")
def double(gpt2_mini: HookedModel) -> HookedModel:
    """gpt2-mini in float64."""
    return HookedModel(copy.deepcopy(gpt2_mini.hf).double(), name="double", weight_hash="0")


def _literal(model: HookedModel, sae, tokens: torch.Tensor, drop: Drop, hook: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    """[sequence, quantity, feature]: tokens active, mean activation, effect; a token and a feature at a time.

    The effect is the slope of the loss when one feature's part of x is scaled at every token but the first.
    """
    found = np.zeros((len(tokens), 3, sae.cfg.d_sae))
    with torch.no_grad(), masked(model, drop):
        x = model.run_with_cache(tokens, [hook])[1][hook].flatten(-2)[:, 1:]
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        for b in range(len(tokens)):
            for t in range(x.shape[1]):
                for f in pre[b, t].topk(sae.cfg.k).indices.tolist():
                    if pre[b, t, f] > 0:
                        found[b, 0, f] += 1
                        found[b, 1, f] += float(pre[b, t, f]) / x.shape[1]
        acts = torch.zeros_like(pre).scatter(2, pre.topk(sae.cfg.k).indices, pre.topk(sae.cfg.k).values.relu())
        for f in range(0, sae.cfg.d_sae, 96):
            part = torch.nn.functional.pad(acts[..., f, None] * sae.W_dec[f], (0, 0, 1, 0)).view(
                len(tokens), -1, model.cfg.n_heads, model.cfg.d_head
            )
            losses = []
            for sign in (1, -1):
                with model.hooks({hook: lambda z, _n, s=sign, p=part: z - s * 1e-4 * p}):
                    logits = model(tokens)[:, :-1].log_softmax(-1)
                losses.append(-logits.gather(2, tokens[:, 1:, None])[..., 0].mean(-1))
            found[:, 2, f] = ((losses[0] - losses[1]) / 2e-4).numpy()
    return found


def test_features_equal_a_literal_reading(double: HookedModel, random_sae) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    data = TokenDataset.from_tokens(torch.randint(0, 4096, (8, 12)), "random")
    saes = {hook: random_sae(double, int(hook[7])).double() for hook in (EARLY, SAME, LATE)}
    result = drop_side_effects(
        double, DROP, data, saes, SideEffectsConfig(skip_positions=1, batch_size=2, least_active=3)
    )
    table = result.features_table().to_pandas()
    literal = {}
    for hook in (EARLY, LATE):
        rows = table[table.hook == hook]
        for side, drop in (("before", Drop()), ("after", DROP)):
            expected = literal[hook, side] = _literal(double, saes[hook], data.tokens, drop, hook)
            np.testing.assert_allclose(rows[f"density_{side}"], expected[:, 0].sum(0) / (8 * 11), atol=1e-12)
            np.testing.assert_allclose(rows[f"mean_{side}"], expected[:, 1].mean(0), atol=1e-7)
            checked = slice(0, None, 96)
            np.testing.assert_allclose(rows[f"effect_{side}"][checked], expected[:, 2].mean(0)[checked], atol=1e-6)
            assert np.abs(expected[:, 2].mean(0)[checked]).max() > 1e-4
            assert (rows[f"size_{side}"] >= rows[f"effect_{side}"].abs() - 1e-9).all()
    # paired interval of one feature
    change = literal[LATE, "after"][:, 1] - literal[LATE, "before"][:, 1]
    feature = int(np.abs(change.mean(0)).argmax())
    row = table[(table.hook == LATE) & (table.feature == feature)].iloc[0]
    error = stats.t.ppf(0.975, 7) * change[:, feature].std(ddof=1) / np.sqrt(8)
    assert row.change_low == pytest.approx(change[:, feature].mean() - error, abs=1e-7)
    assert row.change_high == pytest.approx(change[:, feature].mean() + error, abs=1e-7)


def test_states_and_examples(double: HookedModel, random_sae) -> None:  # type: ignore[no-untyped-def]
    """Features before the drop keep their activity to the last bit; those of the dropped layer are absent."""
    torch.manual_seed(3)
    data = TokenDataset.from_tokens(torch.randint(0, 4096, (6, 12)), "random")
    saes = {hook: random_sae(double, int(hook[7])).double() for hook in (EARLY, SAME, LATE)}
    result = drop_side_effects(
        double,
        DROP,
        data,
        saes,
        SideEffectsConfig(skip_positions=1, batch_size=4, least_active=3, n_worst=2, n_examples=2),
    )
    table = result.features_table().to_pandas()
    early = table[table.hook == EARLY]
    assert (early.density_before == early.density_after).all()
    assert set(early.state) == {"same", "rare"}
    assert (early.effect_before != early.effect_after).any()
    same = table[table.hook == SAME]
    assert set(same.state) == {"absent"}
    assert (same[["density_after", "mean_after", "effect_after", "size_after"]] == 0).all().all()
    late = table[table.hook == LATE]
    dead = late[late.state == "dead"]
    assert len(dead)
    assert (dead.density_after < 0.1 * dead.density_before).all()
    assert (late[late.state == "weaker"].change_high < 0).all()
    assert (late[late.state == "rare"].density_before * 66 < 3).all()
    known = late[late.density_before * 66 >= 2.5]
    kept = (known.mean_after / known.mean_before).to_numpy()
    shown = [row for row in result.examples if row["hook"] == LATE]
    assert len({row["feature"] for row in shown}) == 2
    assert late.mean_after[late.feature == shown[0]["feature"]].iloc[0] <= np.sort(kept)[1] + 1e-12
    first = next(row for row in shown if row["rank"] == 0)
    with torch.no_grad():
        acts = saes[LATE].encode(double.capture(data.tokens, [LATE])[LATE].flatten(-2))[..., first["feature"]]
    assert acts[:, 1:].max() == pytest.approx(max(first["before"]), rel=1e-6)
    assert acts[first["sequence"], first["position"]] == acts[:, 1:].max()
    assert len(first["before"]) == len(first["after"]) == len(first["tokens"])


def test_places_that_are_gone() -> None:
    drop = Drop(attn=(1,), mlp=(2,), blocks=(3,))
    gone = ["blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.2.hook_mlp_out", "blocks.3.hook_attn_out"]
    assert all(absent(hook, drop) for hook in gone)
    kept = ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_mid", "blocks.2.attn.hook_z", "blocks.3.hook_resid_post"]
    assert not any(absent(hook, drop) for hook in [*kept, "ln_final.hook_normalized"])


def test_tasks_and_heads(gpt2_mini: HookedModel) -> None:
    """Layer 2's attention feeds the induction head 3.0: without it the task and the score are gone."""
    drop = Drop(attn=(2,))
    rows, refused = task_losses(gpt2_mini, drop, ("induction",), n_prompts=12, seed=4)
    task = make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=12, seed=4))
    with torch.no_grad():
        values = []
        for hidden in (Drop(), drop):
            with masked(gpt2_mini, hidden):
                logits = gpt2_mini(task.tokens)[torch.arange(12), task.positions].double()
            right = [logits[i, task.right[i][task.right[i] >= 0]].mean() for i in range(12)]
            wrong = [logits[i, task.wrong[i][task.wrong[i] >= 0]].mean() for i in range(12)]
            values.append(np.array([float(r - w) for r, w in zip(right, wrong, strict=True)]))
    (row,) = rows
    assert not refused
    assert row["before"] == pytest.approx(values[0].mean(), abs=1e-5)
    assert row["after"] == pytest.approx(values[1].mean(), abs=1e-5)
    assert row["delta"] == pytest.approx((values[1] - values[0]).mean(), abs=1e-5)
    assert row["able"]
    assert row["high"] < 0
    assert row["accuracy_before"] == (values[0] > 0).mean()
    heads = {(r["layer"], r["head"]): r for r in head_losses(gpt2_mini, drop)}
    assert heads[3, 0]["induction_before"] > 0.3 > 0.1 > heads[3, 0]["induction_after"]
    assert heads[1, 0]["induction_before"] == heads[1, 0]["induction_after"]
    assert heads[2, 4]["absent"]
    assert heads[2, 4]["induction_after"] == 0
    assert not heads[3, 4]["absent"]


def test_images_and_bad_input(
    vit_mini: HookedModel,
    glyphs: ImageDataset,
    random_sae,  # type: ignore[no-untyped-def]
) -> None:
    hook = "blocks.2.attn.hook_z"
    saes = {hook: random_sae(vit_mini, 2)}
    result = drop_side_effects(
        vit_mini, Drop(blocks=(1,)), glyphs.take(6), saes, SideEffectsConfig(skip_positions=1, batch_size=4)
    )
    assert not result.behaviours
    assert result.features_table().to_pandas().size_before.max() > 0
    assert all(row["tokens"] == [] and len(row["before"]) == 65 for row in result.examples)
    with pytest.raises(ConfigError, match="nothing is dropped"):
        drop_side_effects(vit_mini, Drop(), glyphs)
    with pytest.raises(ConfigError, match="n_worst 0"):
        SideEffectsConfig(skip_positions=1, n_worst=0)
    with pytest.raises(ConfigError, match="dead_below"):
        SideEffectsConfig(skip_positions=1, dead_below=1.5)


def test_command_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    gpt2_mini: HookedModel,
    random_sae,  # type: ignore[no-untyped-def]
) -> None:
    folder = tmp_path / "sae"
    random_sae(gpt2_mini, 3).save(folder)
    argv = ["prune", "--drop", "attn:2", "--what-dies", "--n-prompts", "4", "--n-tokens", "512", "--seq-len", "128"]
    status = main([*argv, "--sae", str(folder), "--workspace", str(tmp_path / "w"), "--json"])
    told = json.loads(capsys.readouterr().out)["what_dies"]
    assert status == 0
    assert sum(told["features"]["blocks.3.attn.hook_z"].values()) == 576
    assert told["induction_head_lost"] == "3.0"
    workspace = Workspace(tmp_path / "w")
    run = workspace.run(told["run"])
    assert run.config["drop"]["attn"] == [2]
    assert workspace.read_table(run, "features_lost").num_rows == 576
    assert set(run.tables) == {"features_lost", "lost_examples", "behaviours_lost", "heads_lost"}
    for bad in (["--sae", str(folder), "--drop", "attn:2"], ["--what-dies"]):
        assert main(["prune", *bad, "--workspace", str(tmp_path / "x")]) == 2
    assert "--what-dies" in capsys.readouterr().err

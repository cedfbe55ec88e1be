"""Direct logit attribution against hooks of its own, and sums against the model's logits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attlas.analyses.circuits.logit_attribution import DLAConfig, dla, name_of
from attlas.analyses.circuits.roles import head_role
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, ConservationError
from attlas.interp import HookedModel, load_model


@pytest.fixture(params=["gpt2_mini", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("by", ["component", "head", "feature"])
def test_parts_add_up_to_the_models_logits(by: str, model: HookedModel, random_task: Any, random_sae: Any) -> None:
    task = random_task()
    saes = {f"blocks.{layer}.attn.hook_z": random_sae(model, layer) for layer in (0, 2)}
    saes["blocks.1.hook_attn_out"] = random_sae(model, 1, "hook_attn_out")
    result = dla(model, task, DLAConfig(by=by), saes=saes if by == "feature" else None)
    logits = model.hf(input_ids=task.tokens).logits.detach().double()
    for row in range(len(task)):
        at = logits[row, task.positions[row]]
        right = [int(i) for i in task.right[row] if i >= 0]
        expected = float(at[right].mean() - at[task.wrong[row]].mean())
        assert result.values[row] == pytest.approx(expected, abs=1e-5)
        assert result.contributions[row].sum() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert result.lens[row, -1] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        # The right and the wrong logit apart: all but the mean of the final norm's constant is in the parts.
        assert result.right[row].sum() == pytest.approx(float(at[right].mean()), rel=1e-4, abs=1e-4)
        assert result.wrong[row].sum() == pytest.approx(float(at[task.wrong[row]].mean()), rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(result.right - result.wrong, result.contributions, atol=1e-9)
    assert result.gap < 1e-4
    kinds = {part.kind for part in result.parts}
    assert ("attention" in kinds) == (by == "component")
    assert ("feature" in kinds) == (by == "feature")


@torch.no_grad()
def test_a_head_adds_what_is_lost_without_it_when_the_norm_is_frozen(model: HookedModel, random_task: Any) -> None:
    """z of one head zeroed, only its direct path to the unembedding counted, by hand."""
    task = random_task()
    result = dla(model, task, DLAConfig(by="head"))
    names = [name_of(part) for part in result.parts]
    last = model.cfg.n_layers - 1
    hf = model.hf
    norm = hf.transformer.ln_f if hasattr(hf, "transformer") else hf.model.norm
    cache = model.capture(task.tokens, [f"blocks.{last}.attn.hook_z", f"blocks.{last}.hook_resid_post"])
    for head in (0, 4):
        z, x = cache[f"blocks.{last}.attn.hook_z"], cache[f"blocks.{last}.hook_resid_post"]
        written = z[:, :, head] @ model.W_O(last)[head]
        for row in range(len(task)):
            p = int(task.positions[row])
            scale = x[row, p].std(correction=0) if model.cfg.norm == "ln" else x[row, p].pow(2).mean().sqrt()
            direction = written[row, p] - (written[row, p].mean() if model.cfg.norm == "ln" else 0)
            logits = (direction / scale * norm.weight) @ model.W_U
            right = [int(i) for i in task.right[row] if i >= 0]
            expected = float(logits[right].mean() - logits[task.wrong[row]].mean())
            found = result.contributions[row, names.index(f"head {last}.{head}")]
            assert found == pytest.approx(expected, rel=2e-3, abs=2e-4)


@torch.no_grad()
def test_the_lens_is_the_residual_stream_through_the_frozen_norm(gpt2_mini: HookedModel, random_task: Any) -> None:
    task = random_task()
    result = dla(gpt2_mini, task, DLAConfig(by="component"))
    cache = gpt2_mini.capture(task.tokens, ["blocks.2.hook_resid_pre", "blocks.3.hook_resid_post"])
    norm = gpt2_mini.hf.transformer.ln_f
    p = int(task.positions[0])
    x, last = cache["blocks.2.hook_resid_pre"][0, p], cache["blocks.3.hook_resid_post"][0, p]
    scale = (last.var(correction=0) + norm.eps).sqrt()
    logits = gpt2_mini.hf.lm_head((x - x.mean()) / scale * norm.weight + norm.bias)
    expected = float(logits[task.right[0, 0]] - logits[task.wrong[0]].mean())
    assert result.lens[0, 2] == pytest.approx(expected, abs=1e-4)


def test_attention_to_roles_is_the_models_own(gpt2_mini: HookedModel, random_task: Any) -> None:
    task = replace(random_task(), roles={"here": torch.tensor([2, 1, 0]), "there": torch.tensor([3, 4, 5])})
    result = dla(gpt2_mini, task, DLAConfig(by="head"))
    eager = copy.deepcopy(gpt2_mini.hf)
    eager.set_attn_implementation("eager")
    maps = torch.stack(eager(task.tokens, output_attentions=True).attentions, 1)  # [B, layer, head, dest, src]
    for role, at in task.roles.items():
        for row in range(len(task)):
            expected = maps[row, :, :, task.positions[row], at[row]].detach()
            np.testing.assert_allclose(result.attention[role][row], expected, atol=1e-5)
    assert result.roles_table().num_rows == 2 * 24
    assert not result.labels()  # labels are for ioi


def test_labels_tell_a_name_mover_from_a_head_that_unwrites_the_other_name() -> None:
    at_io, at_s2 = np.linspace(0.5, 0.7, 16), np.linspace(0.01, 0.1, 16)
    ones = np.linspace(0.9, 1.1, 16)
    looks = {"IO": at_io, "S2": at_s2}
    assert head_role("ioi", looks, right=2 * ones, wrong=0 * ones).label == "name mover"
    assert head_role("ioi", looks, right=-2 * ones, wrong=0 * ones).label == "negative"
    assert head_role("ioi", looks, right=np.resize([-1.0, 1.0], 16), wrong=-2 * ones).label == ""
    # The same logit difference as a name mover's, by taking from S: no name mover.
    unwrites = head_role("ioi", {"IO": at_s2, "S2": at_io}, right=-0.2 * ones, wrong=-2.1 * ones)
    assert (unwrites.looks_at, unwrites.label) == ("S2", "direct S-inhibition")
    # One that raises or lowers every name alike tells none of them.
    for sign in (2, -2):
        assert head_role("ioi", looks, right=sign * ones, wrong=sign * ones[::-1]).label == ""
    through_others = head_role("ioi", {"IO": at_s2, "S2": at_io}, right=-2 * ones, wrong=-2 * ones[::-1])
    assert through_others.label == "S-inhibition candidate"
    few = {role: values[:4] for role, values in looks.items()}
    assert head_role("ioi", few, right=2 * ones[:4], wrong=0 * ones[:4]).label == ""  # no interval below eight prompts
    assert head_role("ioi", {"IO": at_s2, "S1": at_io}, right=0 * ones, wrong=-ones).label == "negative"
    assert head_role("ioi", {"IO": at_s2}, right=ones, wrong=ones).looks_at == ""
    assert head_role("greater-than", looks, right=2 * ones, wrong=0 * ones).label == ""


def test_saved_tables_and_figures(gpt2_mini: HookedModel, tmp_path: Path, random_task: Any) -> None:
    result = dla(gpt2_mini, random_task(), DLAConfig(by="head"))
    workspace = Workspace(tmp_path)
    run = result.save(workspace, gpt2_mini.ref)
    table = workspace.read_table(run, "dla")
    assert sum(kind == "head" for kind in table["kind"].to_pylist()) == 24
    assert np.isclose(sum(table["contribution"].to_pylist()), result.values.mean(), atol=1e-4)
    assert workspace.read_table(run, "logit_lens").num_rows == 5
    assert result.plot().data[0].z.shape == (4, 6)
    assert len(result.plot_lens().data[0].y) == 5


def test_bad_input_is_named(gpt2_mini: HookedModel, random_task: Any, random_sae: Any) -> None:
    with pytest.raises(ConfigError, match="'heads'"):
        DLAConfig(by="heads")
    with pytest.raises(ConfigError, match="needs SAEs"):
        dla(gpt2_mini, random_task(), DLAConfig(by="feature"))
    sae = random_sae(gpt2_mini, 1, "hook_resid_pre")
    with pytest.raises(ConfigError, match="hook_resid_pre"):
        dla(gpt2_mini, random_task(), DLAConfig(by="feature"), saes={"blocks.1.hook_resid_pre": sae})


def test_parts_that_do_not_add_up_are_refused(random_task: Any) -> None:
    half = load_model("gpt2-mini", device="cpu", dtype="bfloat16")
    with pytest.raises(ConservationError, match="float32"):
        dla(half, random_task())

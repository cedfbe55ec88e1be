"""Patching against forward passes edited by hand with torch's own hooks; estimates against what they must add up to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attlas.analyses.circuits.activation_patching import SCHEMAS, PatchingConfig, patching
from attlas.analyses.circuits.attribution_patching import gradients, path_gradients
from attlas.analyses.circuits.sites import Site
from attlas.analyses.tasks.catalog import make_task
from attlas.analyses.tasks.metrics import LogitDifference
from attlas.analyses.tasks.prompts import task_from_prompts
from attlas.analyses.tasks.task import Task, TaskConfig
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, HookNameError, LayerRangeError, PromptError, UnsupportedModelError
from attlas.interp import HookedModel
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.decompose import decompose


def _task(d_vocab: int, n: int = 3, length: int = 7) -> Task:
    draw = torch.Generator().manual_seed(5)
    clean, other = (torch.randint(d_vocab, (n, length), generator=draw) for _ in range(2))
    right, wrong = (torch.randint(d_vocab, (n, 1), generator=draw) for _ in range(2))
    return Task("random", clean, other, right, wrong, torch.full((n,), length - 1))


def _out_proj(model: HookedModel, layer: int) -> Any:
    """The module whose input is z, found in the Hugging Face model itself."""
    hf = model.hf
    return (
        hf.transformer.h[layer].attn.c_proj if hasattr(hf, "transformer") else hf.model.layers[layer].self_attn.o_proj
    )


def _block(model: HookedModel, layer: int) -> Any:
    return model.hf.transformer.h[layer] if hasattr(model.hf, "transformer") else model.hf.model.layers[layer]


@torch.no_grad()
def _inputs(model: HookedModel, module: Any, tokens: Tensor) -> Tensor:
    """What flows into a module."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    model.hf(input_ids=tokens)
    handle.remove()
    return seen[0]


@torch.no_grad()
def _logits_with(model: HookedModel, module: Any, new: Tensor, tokens: Tensor) -> Tensor:
    """Logits when a module is given something else."""
    handle = module.register_forward_pre_hook(lambda _m, args: (new, *args[1:]))
    logits = model.hf(input_ids=tokens).logits
    handle.remove()
    return logits


def _difference(logits: Tensor, task: Task) -> Tensor:
    row = torch.arange(len(task))
    last = logits[row, task.positions]
    return last[row, task.right[:, 0]] - last[row, task.wrong[:, 0]]


@pytest.fixture(params=["gpt2_mini", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("mode", ["patch", "zero", "mean", "resample"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_heads_equal_a_run_edited_by_hand(mode: str, direction: str, model: HookedModel) -> None:
    task = _task(101)
    result = patching(model, task, PatchingConfig(mode=mode, by="head", direction=direction, seed=4))
    base, source = (task.tokens, task.corrupted) if direction == "noise" else (task.corrupted, task.tokens)
    cfg = model.cfg
    assert len(result.sites) == cfg.n_layers * cfg.n_heads
    before = _difference(model.hf(input_ids=base).logits, task)
    for at in (1, cfg.n_heads + 2, len(result.sites) - 1):
        layer, head = divmod(at, cfg.n_heads)
        module = _out_proj(model, layer)
        z = _inputs(model, module, base).unflatten(-1, (cfg.n_heads, cfg.d_head)).clone()
        other = _inputs(model, module, source).unflatten(-1, (cfg.n_heads, cfg.d_head))[:, :, head]
        if mode == "zero":
            other = torch.zeros_like(other)
        elif mode == "mean":
            other = other.mean(0, keepdim=True).expand_as(other)
        elif mode == "resample":  # whichever prompt it was, each took another one's, and no two the same
            found = result.effects[at]
            table = torch.stack([_one_head(model, task, base, z, other, layer, head, s) - before for s in (1, 2)])
            assert min(abs(table[0] - torch.tensor(found)).max(), abs(table[1] - torch.tensor(found)).max()) < 1e-4
            continue
        z[:, :, head] = other
        after = _difference(_logits_with(model, module, z.flatten(-2), base), task)
        torch.testing.assert_close(torch.tensor(result.effects[at]).float(), after - before, atol=2e-5, rtol=1e-4)


def _one_head(
    model: HookedModel, task: Task, base: Tensor, z: Tensor, other: Tensor, layer: int, head: int, shift: int
) -> Tensor:
    """The metric when each of three prompts takes the head of the one `shift` places on: all derangements of three."""
    new = z.clone()
    new[:, :, head] = other.roll(shift, 0)
    return _difference(_logits_with(model, _out_proj(model, layer), new.flatten(-2), base), task)


def test_residual_positions_equal_a_run_edited_by_hand(model: HookedModel) -> None:
    task = _task(101)
    result = patching(model, task, PatchingConfig(by="position", part="resid_pre"))
    length = task.tokens.shape[1]
    before = _difference(model.hf(input_ids=task.tokens).logits, task)
    for layer, position in ((0, 3), (2, length - 1)):
        module = _block(model, layer)
        x = _inputs(model, module, task.tokens)
        x[:, position] = _inputs(model, module, task.corrupted)[:, position]
        after = _difference(_logits_with(model, module, x, task.tokens), task)
        found = torch.tensor(result.effects[layer * length + position]).float()
        torch.testing.assert_close(found, after - before, atol=2e-5, rtol=1e-4)
    # All of layer 0's input is all there is to a prompt: whole-layer patching of it turns one prompt into the other.
    whole = patching(model, task, PatchingConfig(by="layer", part="resid_pre"))
    torch.testing.assert_close(
        torch.tensor(whole.effects[0]), torch.tensor(whole.source - whole.base), atol=1e-4, rtol=0
    )
    assert whole.normalized()[0] == pytest.approx(1, abs=1e-4)


@pytest.fixture
def sae(gpt2_mini: HookedModel) -> SAE:
    """A random TopK autoencoder on layer 2 of gpt2-mini, with a bias."""
    cfg = gpt2_mini.cfg
    width = cfg.n_heads * cfg.d_head
    config = SAEConfig(
        arch="topk",
        d_in=width,
        d_sae=3 * width,
        k=8,
        hook_name="blocks.2.attn.hook_z",
        model_name=gpt2_mini.name,
        model_hash=gpt2_mini.weight_hash,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
    )
    sae = create_sae(config)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(3 * width, width, generator=draw), dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(0.1 * torch.randn(width, generator=draw))
    return sae


def test_features_and_error_equal_a_run_edited_by_hand(gpt2_mini: HookedModel, sae: SAE) -> None:
    hook, task, model = "blocks.2.attn.hook_z", _task(101), gpt2_mini
    module = _out_proj(model, 2)
    z, other = _inputs(model, module, task.tokens), _inputs(model, module, task.corrupted)
    f, g = sae.encode(z), sae.encode(other)
    error, other_error = z - sae(z), other - sae(other)
    parts = decompose(sae, z)
    torch.testing.assert_close(parts.coefficients @ sae.W_dec + parts.bias + parts.error, z, atol=1e-6, rtol=1e-6)
    feature = int((f - g).abs().sum((0, 1)).argmax())
    before = _difference(model.hf(input_ids=task.tokens).logits, task)
    sites = [Site(hook, feature=feature), Site(hook, error=True), Site(hook, feature=feature, position=6)]
    for mode in ("patch", "zero"):
        result = patching(model, task, PatchingConfig(mode=mode, by="feature"), saes={hook: sae}, sites=sites)
        to, to_error = (g, other_error) if mode == "patch" else (torch.zeros_like(f), torch.zeros_like(error))
        change = (to - f)[..., feature, None] * sae.W_dec[feature]
        last = change.clone()
        last[:, :6] = 0
        for row, new in enumerate((z + change, z + to_error - error, z + last)):
            after = _difference(_logits_with(model, module, new.detach(), task.tokens), task)
            torch.testing.assert_close(torch.tensor(result.effects[row]).float(), after - before, atol=2e-5, rtol=1e-4)
    found = patching(model, task, PatchingConfig(by="feature", n_features=5), saes={hook: sae})
    assert sum(site.error for site in found.sites) == 1
    assert 1 < len(found.sites) <= 6


def test_gradients_are_those_of_autograd(model: HookedModel) -> None:
    task = _task(101)
    hook, metric = "blocks.1.attn.hook_z", task.logit_difference()
    found = gradients(model, task.tokens, metric, [hook])[hook].flatten(-2)
    z = _inputs(model, _out_proj(model, 1), task.tokens).requires_grad_()
    with torch.enable_grad():
        handle = _out_proj(model, 1).register_forward_pre_hook(lambda _m, args: (z, *args[1:]))
        total = _difference(model.hf(input_ids=task.tokens).logits, task).sum()
        handle.remove()
        (expected,) = torch.autograd.grad(total, z)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_integrated_gradients_add_up_to_the_exact_effect(model: HookedModel) -> None:
    """Completeness: Σ gradient × difference over a hook is the effect of patching all of it, the closer the more steps."""
    task = _task(101)
    exact = patching(model, task, PatchingConfig(by="layer", part="z")).effects
    gaps = []
    for steps in (0, 2, 32):
        heads = patching(model, task, PatchingConfig(by="head", ig_steps=steps))
        total = heads.estimates.reshape(model.cfg.n_layers, model.cfg.n_heads, -1).sum(1)
        gaps.append(float(abs(total - exact).max()))
    assert gaps[2] < 0.02 * float(abs(exact).max())
    assert gaps[2] < gaps[1] < gaps[0]


def test_path_gradient_of_a_linear_metric_is_its_weight(gpt2_mini: HookedModel) -> None:
    weight = torch.randn(101)
    hook = "ln_final.hook_normalized"
    tokens = _task(101).tokens
    _, base = gpt2_mini.run_with_cache(tokens, [hook])
    linear = path_gradients(
        gpt2_mini,
        tokens,
        lambda logits: logits[:, -1, :101] @ weight,
        {hook: base[hook].detach()},
        {hook: torch.zeros_like(base[hook])},
        3,
    )[hook]
    expected = gpt2_mini.W_U[:, :101] @ weight
    torch.testing.assert_close(linear[:, -1], expected.expand(3, -1), atol=1e-4, rtol=1e-4)
    assert not linear[:, :-1].any()


def test_saved_table_and_figure(gpt2_mini: HookedModel, tmp_path: Path) -> None:
    task = make_task(gpt2_mini, TaskConfig(task="induction", n_prompts=8))
    result = patching(gpt2_mini, task, PatchingConfig(by="head", mode="zero"))
    workspace = Workspace(tmp_path)
    run = result.save(workspace, gpt2_mini.ref)
    table = workspace.read_table(run, "patching")
    assert table.num_rows == 24
    assert table.column_names == [c.name for c in SCHEMAS[0].columns]
    low, mean, high = (table[name].to_numpy() for name in ("low", "effect", "high"))
    assert (low <= mean + 1e-9).all()
    assert (mean <= high + 1e-9).all()
    assert result.plot().data[0].z.shape == (4, 6)
    assert not math.isnan(result.summary()["estimate_pearson"])
    assert result.ranking(1)[0][0] == f"blocks.{abs(result.heatmap()).argmax() // 6}.attn.hook_z head " + str(
        abs(result.heatmap()).argmax() % 6
    )


def test_bad_input_is_named(gpt2_mini: HookedModel, vit_mini: HookedModel, sae: SAE) -> None:
    task = _task(101)
    for config, match in (({"mode": "patsh"}, "patsh"), ({"by": "heads"}, "heads"), ({"ig_steps": -1}, "-1")):
        with pytest.raises(ConfigError, match=match):
            PatchingConfig(**config)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="vit-mini"):
        patching(vit_mini, task)
    bad: list[tuple[Site, type[Exception], str]] = [
        (Site("blocks.9.hook_resid_pre"), HookNameError, "blocks.9"),
        (Site("blocks.1.hook_resid_pre", head=1), ConfigError, "no heads"),
        (Site("blocks.1.attn.hook_z", head=6), LayerRangeError, "0–5"),
        (Site("blocks.1.attn.hook_z", feature=3), ConfigError, "no SAE"),
        (Site("blocks.2.attn.hook_z", feature=sae.cfg.d_sae), ConfigError, f"0–{sae.cfg.d_sae - 1}"),
        (Site("blocks.1.attn.hook_z", position=7), ConfigError, "7 tokens"),
    ]
    for site, error, match in bad:
        with pytest.raises(error, match=match):
            patching(gpt2_mini, task, saes={"blocks.2.attn.hook_z": sae}, sites=[site])
    longer = Task("x", task.tokens, task.corrupted[:, :-1], task.right, task.wrong, task.positions)
    with pytest.raises(PromptError, match=r"\[3, 6\]"):
        patching(gpt2_mini, longer)
    with pytest.raises(ConfigError, match="needs SAEs"):
        patching(gpt2_mini, task, PatchingConfig(by="feature"))


def test_prompts_that_do_not_line_up_name_their_tokens(gpt2_mini: HookedModel) -> None:
    with pytest.raises(PromptError, match="part at position 2"):
        task_from_prompts(gpt2_mini, " the man went", " the", corrupted=" the extraordinary went")
    with pytest.raises(PromptError, match="2 tokens"):
        task_from_prompts(gpt2_mini, " the man went", "nope")
    alone = task_from_prompts(gpt2_mini, " the man went", " the")
    logits = gpt2_mini(alone.tokens)
    metric = alone.metric_fn()
    assert isinstance(metric, LogitDifference)
    torch.testing.assert_close(metric(logits), logits[:, -1, alone.right[0, 0]])


def test_patching_a_prompt_from_itself_is_refused(gpt2_mini: HookedModel) -> None:
    alone = task_from_prompts(gpt2_mini, " the man went", " the")
    for mode in ("patch", "mean", "resample"):
        with pytest.raises(PromptError, match=f"mode '{mode}' would change nothing"):
            patching(gpt2_mini, alone, PatchingConfig(mode=mode))
    assert abs(patching(gpt2_mini, alone, PatchingConfig(mode="zero")).effects).min() > 0
    task = _task(101)
    same = Task("same", task.tokens, task.tokens, task.right, task.wrong, task.positions)
    assert abs(patching(gpt2_mini, same, PatchingConfig(mode="resample")).effects).max() > 0


def test_an_autoencoder_of_another_model_or_hook_warns(gpt2_mini: HookedModel, sae: SAE) -> None:
    task, hook = _task(101), "blocks.1.attn.hook_z"
    sae.cfg = type(sae.cfg)(**{**sae.cfg.__dict__, "model_hash": "0" * 16})
    with pytest.warns(UserWarning, match="autoencoder|SAE") as caught:
        patching(gpt2_mini, task, saes={hook: sae}, sites=[Site(hook, feature=0)])
    text = " ".join(str(w.message) for w in caught)
    assert "0" * 16 in text
    assert gpt2_mini.weight_hash in text
    assert "blocks.2.attn.hook_z" in text

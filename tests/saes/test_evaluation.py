"""Evaluation on gpt2-mini, against numbers computed here by other means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from attlas.data.text import TokenDataset, load_tokens
from attlas.data.workspace import Ref, Workspace
from attlas.errors import ConfigError, HookNameError, LayerRangeError
from attlas.saes import SAE, EvalConfig, EvalResult, SAEConfig, evaluate
from attlas.saes.architectures import create_sae
from attlas.saes.base import StepContext
from attlas.saes.evaluation.measure import intervals
from attlas.saes.evaluation.tables import METRICS
from attlas.saes.splice import sae_hook
from attlas.saes.training.init import initialise

if TYPE_CHECKING:
    from attlas.interp import HookedModel

HOOK = "blocks.2.attn.hook_z"
REF = Ref("test", "0" * 16)


def make_sae(rows: torch.Tensor, k: int = 24, d_sae: int = 400, **more: object) -> SAE:
    """A TopK SAE trained for a moment on the rows it is tested on."""
    facts = {"hook_name": HOOK, "n_heads": 6, "d_head": 32, "skip_positions": 0}
    sae = create_sae(SAEConfig(d_in=192, d_sae=d_sae, k=k, **facts, **more))
    initialise(sae, rows, torch.Generator().manual_seed(0), active_subspace=True)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sae.loss(rows, StepContext()).total.backward()
        optimizer.step()
        sae.after_step()
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def tokens(gpt2_mini: HookedModel) -> torch.Tensor:
    return load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=64, n_tokens=12 * 64).tokens


@pytest.fixture(scope="module")
def sae(gpt2_mini: HookedModel, tokens: torch.Tensor) -> SAE:
    return make_sae(gpt2_mini.capture(tokens, [HOOK])[HOOK].flatten(2).flatten(0, 1))


@pytest.fixture(scope="module")
def result(gpt2_mini: HookedModel, tokens: torch.Tensor, sae: SAE) -> EvalResult:
    return evaluate(sae, gpt2_mini, TokenDataset(tokens, REF.name, REF.hash), EvalConfig(eval_batch=5, n_bootstrap=200))


def loss_with(model: HookedModel, tokens: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] | None) -> float:
    """Mean next-token cross-entropy, from log-softmax and gather."""
    hooks = {} if change is None else {HOOK: lambda z, name: change(z)}
    with torch.no_grad(), model.hooks(hooks):
        log_p = model(tokens)[:, :-1].log_softmax(-1)
    return -log_p.gather(-1, tokens[:, 1:, None]).mean().item()


def test_reconstruction_numbers(gpt2_mini: HookedModel, tokens: torch.Tensor, sae: SAE, result: EvalResult) -> None:
    x = gpt2_mini.capture(tokens, [HOOK])[HOOK].flatten(2).flatten(0, 1)
    x_hat, mean = sae(x), x.mean(0)
    assert result.value("explained_variance") == pytest.approx(
        float(1 - (x - x_hat).pow(2).sum() / (x - mean).pow(2).sum()), abs=1e-5
    )
    per_token = 1 - (x - x_hat).pow(2).sum(-1) / (x - mean).pow(2).sum(-1)
    assert result.value("explained_variance_token") == pytest.approx(float(per_token.mean()), abs=1e-5)
    assert abs(result.value("explained_variance_token") - result.value("explained_variance")) > 1e-3
    slope = float(((x_hat - mean) * (x - mean)).sum() / (x - mean).pow(2).sum())
    assert result.value("shrinkage_slope") == pytest.approx(slope, abs=1e-5)
    assert result.value("l0") == pytest.approx(float((sae.encode(x) > 0).sum(-1).float().mean()), abs=1e-6)
    assert result.value("cosine") == pytest.approx(float(torch.cosine_similarity(x, x_hat, dim=-1).mean()), abs=1e-5)
    density = (sae.encode(x) > 0).double().mean(0)
    np.testing.assert_allclose(result.density_F, density.numpy(), atol=1e-12)
    assert result.value("dead_fraction") == pytest.approx(float((density == 0).double().mean()))
    counts = result.density_table().column("count").to_pylist()
    assert sum(counts) == 400
    assert counts[0] == int((density == 0).sum())


def test_both_explained_variances_are_those_of_saelens(
    gpt2_mini: HookedModel, tokens: torch.Tensor, sae: SAE, result: EvalResult
) -> None:
    """SAELens's own accumulator, and its per-token ("legacy") formula as it logs it in training."""
    evals = pytest.importorskip("sae_lens.evals")
    x = gpt2_mini.capture(tokens, [HOOK])[HOOK].flatten(2).flatten(0, 1)
    theirs = evals.ExplainedVarianceCalculator()
    for part in x.split(100):
        theirs.add_batch(sae_output=sae(part), hidden_acts=part)
    assert result.value("explained_variance") == pytest.approx(theirs.compute(), abs=1e-5)

    from types import SimpleNamespace

    from sae_lens.training.sae_trainer import SAETrainer

    output = SimpleNamespace(
        sae_in=x, sae_out=sae(x), feature_acts=sae.encode(x), loss=torch.zeros(()), losses={}, metrics={}
    )
    trainer = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{"lr": 0.0}]),
        n_forward_passes_since_fired=torch.zeros(1),
        dead_neurons=torch.zeros(1),
        coefficient_schedulers={},
    )
    logged = SAETrainer.build_train_step_log_dict(trainer, output, 0)  # type: ignore[arg-type]
    assert result.value("explained_variance_token") == pytest.approx(
        logged["metrics/explained_variance_legacy"], abs=1e-5
    )
    assert result.value("explained_variance") == pytest.approx(logged["metrics/explained_variance"], abs=1e-5)


def test_functional_numbers(gpt2_mini: HookedModel, tokens: torch.Tensor, sae: SAE, result: EvalResult) -> None:
    x = gpt2_mini.capture(tokens, [HOOK])[HOOK]
    clean = loss_with(gpt2_mini, tokens, None)
    spliced = loss_with(gpt2_mini, tokens, lambda z: sae(z))
    zero = loss_with(gpt2_mini, tokens, torch.zeros_like)
    mean = loss_with(gpt2_mini, tokens, lambda z: x.mean((0, 1)).expand_as(z))
    assert result.value("ce_clean") == pytest.approx(clean, abs=1e-4)
    assert result.value("ce_spliced") == pytest.approx(spliced, abs=1e-4)
    assert result.value("ce_recovered") == pytest.approx((zero - spliced) / (zero - clean), abs=1e-3)
    assert result.value("ce_recovered_mean") == pytest.approx((mean - spliced) / (mean - clean), abs=2e-3)
    assert zero > mean > spliced > clean
    with torch.no_grad():
        p = gpt2_mini(tokens).log_softmax(-1)
        with gpt2_mini.hooks({HOOK: sae_hook(sae, use_error_term=False)}):
            q = gpt2_mini(tokens).log_softmax(-1)
    assert result.value("kl") == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-4)


def test_controls(result: EvalResult, gpt2_mini: HookedModel, tokens: torch.Tensor) -> None:
    x = gpt2_mini.capture(tokens, [HOOK])[HOOK].flatten(2).flatten(0, 1).double()
    spectrum = torch.linalg.svdvals(x - x.mean(0)).pow(2)
    share = float(spectrum[:24].sum() / spectrum.sum())
    assert result.value("explained_variance", "pca") == pytest.approx(share, abs=1e-4)
    assert result.value("l0", "pca") == 24
    assert result.value("explained_variance") > result.value("explained_variance", "random_dictionary") > 0
    assert result.value("explained_variance", "random_dictionary") > result.value(
        "explained_variance", "shuffled_weights"
    )


def test_intervals_and_descriptions(result: EvalResult) -> None:
    for row in result.rows:
        assert row["description"] == METRICS[row["metric"]].definition
        assert (row["n_sequences"], row["n_tokens"]) == (12, 768)
        if row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"] or row["high"] - row["low"] < 1e-6
    ev = next(r for r in result.rows if r["metric"] == "explained_variance")
    assert 0 < ev["high"] - ev["low"] < 0.2
    assert result.plot().data


def test_bootstrap_covers_a_known_ratio() -> None:
    """95 % intervals of a ratio of sums cover the true ratio in about 95 % of experiments."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        n = generator.integers(5, 15, 60).astype(float)
        sums = {"n": n, "error": generator.gamma(2.0, n / 4), "variance": n.copy(), "aligned": n, "cosine": n}
        sums["explained"] = n
        sums["active"] = n
        value, low, high = intervals(sums, EvalConfig(n_bootstrap=300))["squared_error"]
        assert value == pytest.approx(sums["error"].sum() / n.sum())
        covered += low <= 0.5 <= high  # type: ignore[operator]
    assert 175 <= covered <= 200


def test_a_perfect_sae_recovers_everything(gpt2_mini: HookedModel, tokens: torch.Tensor) -> None:
    identity = create_sae(SAEConfig(d_in=192, d_sae=384, arch="standard", k=1, hook_name=HOOK))
    with torch.no_grad():
        eye = torch.eye(192)
        identity.W_enc.copy_(torch.cat([eye, -eye], 1))
        identity.W_dec.copy_(torch.cat([eye, -eye], 0))
    found = evaluate(
        identity, gpt2_mini, TokenDataset(tokens, REF.name, REF.hash), EvalConfig(controls=(), n_bootstrap=0)
    )
    assert found.value("explained_variance") == pytest.approx(1, abs=1e-6)
    assert found.value("ce_recovered") == pytest.approx(1, abs=1e-4)
    assert found.value("kl") == pytest.approx(0, abs=1e-5)
    assert {row["low"] for row in found.rows} == {None}


def test_saving(result: EvalResult, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    run = result.save(workspace, parents=("sae-x",))
    assert (run.kind, run.parents) == ("sae_eval", ("sae-x",))
    table = workspace.read_table(run, "evaluation")
    assert table.num_rows == len(result.rows)
    assert table.schema.field("value").metadata[b"unit"] == b"see unit"
    assert workspace.run(run.id).summary["explained_variance"] == pytest.approx(result.value("explained_variance"))


def test_wrong_width_and_hook(gpt2_mini: HookedModel, tokens: torch.Tensor) -> None:
    narrow = create_sae(SAEConfig(d_in=96, d_sae=64, k=4, hook_name=HOOK, model_name="other"))
    with pytest.raises(ConfigError, match="d_in=96 and the activations have 192"):
        evaluate(narrow, gpt2_mini, TokenDataset(tokens, REF.name, REF.hash))
    nameless = create_sae(SAEConfig(d_in=192, d_sae=64, k=4))
    with pytest.raises(ConfigError, match="does not say which hook"):
        evaluate(nameless, gpt2_mini, TokenDataset(tokens, REF.name, REF.hash))
    with pytest.raises(HookNameError, match=r"no hook matches 'blocks\.1\.attn\.hook_zz'; did you mean"):
        evaluate(nameless, gpt2_mini, TokenDataset(tokens, REF.name, REF.hash), hook="blocks.1.attn.hook_zz")
    with pytest.raises(LayerRangeError, match=r"layer 9 is out of range 0–3"):
        evaluate(nameless, gpt2_mini, TokenDataset(tokens, REF.name, REF.hash), hook="blocks.9.attn.hook_z")
    with pytest.raises(ConfigError, match="control 'pcb' is unknown"):
        EvalConfig(controls=("pcb",))


# -- splicing ----------------------------------------------------------------------------------------------------------


def test_error_term_leaves_the_run_exactly_clean(gpt2_mini: HookedModel, tokens: torch.Tensor, sae: SAE) -> None:
    with torch.no_grad():
        clean = gpt2_mini(tokens)
        with gpt2_mini.hooks({HOOK: sae_hook(sae)}):
            exact = gpt2_mini(tokens)
        with gpt2_mini.with_saes({HOOK: sae}, use_error_term=True):
            spliced = gpt2_mini(tokens)
        with gpt2_mini.with_saes({HOOK: sae}, use_error_term=False):
            changed = gpt2_mini(tokens)
        after = gpt2_mini(tokens)
    assert torch.equal(exact, clean)
    assert torch.equal(spliced, clean)
    assert torch.equal(after, clean)
    assert not torch.allclose(changed, clean, atol=1e-2)


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_token_normalisation_is_undone_when_spliced(
    gpt2_mini: HookedModel, tokens: torch.Tensor, normalisation: str
) -> None:
    torch.manual_seed(0)
    sae = create_sae(SAEConfig(d_in=192, d_sae=64, k=64, hook_name=HOOK, normalisation=normalisation))
    seen = {}
    with torch.no_grad():
        z = gpt2_mini.capture(tokens, [HOOK])[HOOK]
        expected = sae(z)
        for name, hooks in {
            "with_saes": gpt2_mini.with_saes({HOOK: sae}, use_error_term=False),
            "edited": gpt2_mini.hooks({HOOK: sae_hook(sae, use_error_term=False, edit=lambda f: f)}),
        }.items():
            with hooks:
                seen[name] = gpt2_mini.run_with_cache(tokens, names=[HOOK])[1][HOOK]
    norms = z.flatten(-2).norm(dim=-1)
    assert norms.std() / norms.mean() > 0.1  # or undoing it would hardly show
    for name, value in seen.items():
        torch.testing.assert_close(value, expected, msg=name)


def test_edits_change_only_what_the_feature_wrote(sae: SAE) -> None:
    z = torch.randn(2, 5, 6, 32)
    f = sae.encode(z)
    feature = int(f.sum((0, 1)).argmax())
    edit = sae_hook(sae, use_error_term=True, edit=lambda f: f.index_fill(-1, torch.tensor([feature]), 0.0))
    expected = z.flatten(2) - f[..., feature, None] * sae.W_dec[feature]
    torch.testing.assert_close(edit(z, HOOK).flatten(2), expected, atol=1e-5, rtol=1e-4)


def test_gradient_reaches_features_and_not_the_error(sae: SAE) -> None:
    x = torch.randn(3, 192, requires_grad=True)
    sae_hook(sae, use_error_term=True)(x, HOOK).sum().backward()
    y = x.detach().clone().requires_grad_()
    sae(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)

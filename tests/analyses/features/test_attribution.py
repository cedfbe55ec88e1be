"""DFA adds up: architectures × normalisations × b_dec subtracted or not, against encoders written out in float64 numpy."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.circuits.frozen import FrozenPass
from attlas.analyses.circuits.terms import feature_row
from attlas.analyses.circuits.tracing import FeatureTarget, LogitTarget, TraceConfig, direct_attribution, trace
from attlas.analyses.features.attribution import attribute_features, attribution_hooks
from attlas.analyses.features.describe import FeaturesConfig, features
from attlas.data.text import TokenDataset
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.kernels import AttentionRule, feature_dfa
from attlas.saes.architectures import ARCHITECTURES, create_sae
from attlas.saes.base import SAE
from attlas.saes.config import NORMALISATIONS, SAEConfig
from attlas.saes.reading import PATHS, encoder_columns, encoder_paths, token_scale

HOOK = "blocks.1.attn.hook_z"
KINDS = [*itertools.product(ARCHITECTURES, NORMALISATIONS, (True, False))]
EPSILON = 1e-5


def _sae(arch: str, normalisation: str, subtract: bool, width: int, dtype: str = "float32") -> SAE:
    """Every tensor random, so that none can be left out."""
    config = SAEConfig(
        d_in=width, d_sae=2 * width, k=8, arch=arch, normalisation=normalisation, apply_b_dec_to_input=subtract,
        hook_name=HOOK, dtype=dtype,
    )  # fmt: skip
    sae = create_sae(config)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            value = 0.3 * torch.randn(tensor.shape, generator=draw)
            tensor.copy_(value.abs() if name == "threshold" else value)
    return sae


def _by_hand(sae: SAE, x: np.ndarray) -> dict[str, np.ndarray]:
    """Pre-activations [..., F] by path, from the papers' and SAELens's formulas."""
    p = {name: tensor.detach().double().numpy() for name, tensor in sae.state_dict().items()}
    if sae.cfg.normalisation == "layer_norm":
        x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + EPSILON)
    elif sae.cfg.normalisation == "constant_norm_rescale":
        x = x * math.sqrt(x.shape[-1]) / np.linalg.norm(x, axis=-1, keepdims=True)
    if sae.cfg.apply_b_dec_to_input:
        x = x - p["b_dec"]
    if sae.cfg.arch != "gated":
        return {"magnitude": x @ p["W_enc"] + p["b_enc"]}
    return {"magnitude": x @ (p["W_enc"] * np.exp(p["r_mag"])) + p["b_mag"], "gate": x @ p["W_enc"] + p["b_enc"]}


def _random_attention() -> tuple[list[torch.Tensor], AttentionRule, torch.Tensor]:
    """q, k, v [2, H, 7, 5] with a mean far from 0, in float64, their rule, and z [2, 7, H·5] by a plain softmax."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 7, 5, generator=draw, dtype=torch.float64) + 0.5 for n in (4, 2, 2))
    scores = torch.einsum("bhde,bhse->bhds", q, k.repeat_interleave(2, 1)) / math.sqrt(5)
    pattern = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    z = torch.einsum("bhds,bhse->bdhe", pattern, v.repeat_interleave(2, 1)).flatten(2)
    return [q, k, v], AttentionRule(causal=True), z


def _check_sums(sae: SAE, expected: dict[str, np.ndarray]) -> None:
    (q, k, v), rule, z = _random_attention()
    at = torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(sae.cfg.d_sae))
    rows, positions, chosen = at.T.contiguous()
    assert tuple(expected) == encoder_paths(sae)
    for path, by_hand in expected.items():
        columns, constants = encoder_columns(sae, path=path)
        scale = token_scale(sae, z)[rows, positions]
        dfa = feature_dfa(q, k, v, columns, chosen, positions, rule, sequences=rows, scale=scale, keep_heads=True)
        assert dfa.by_head_source is not None
        wanted = torch.from_numpy(by_hand).flatten()
        torch.testing.assert_close(dfa.by_head_source.sum((1, 2)) + constants[chosen], wanted, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(dfa.by_source.sum(1) + constants[chosen], wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("arch", "normalisation", "subtract"), KINDS)
def test_attribution_and_constant_make_the_pre_activation(arch: str, normalisation: str, subtract: bool) -> None:
    sae = _sae(arch, normalisation, subtract, 20, "float64")
    z = _random_attention()[2]
    expected = _by_hand(sae, z.numpy())
    f = sae.encode(z).detach()
    active = f > 0
    assert active.any()
    torch.testing.assert_close(f[active], torch.from_numpy(expected["magnitude"])[active], atol=1e-9, rtol=1e-9)
    if arch == "gated":
        both = (expected["gate"] > 0) & (expected["magnitude"] > 0)
        assert np.array_equal(active.numpy(), both)
        assert (expected["gate"] <= 0)[expected["magnitude"] > 0].any()  # one path does not tell the other
    _check_sums(sae, expected)
    plain = z @ sae.W_enc + sae.b_enc - sae.b_dec @ sae.W_enc  # the sum as it was, for plain autoencoders alone
    is_plain = arch != "gated" and normalisation == "none" and subtract
    assert ((plain.detach() - torch.from_numpy(expected["magnitude"])).abs().max() < 1e-9) == is_plain


@pytest.mark.parametrize("arch", ["standard", "gated", "topk", "jumprelu"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", ["expected_average_only_in", "covariance_whitening"])
def test_scaled_and_whitened_inputs_are_folded_in(arch: str, subtract: bool, kind: str, tmp_path: Path) -> None:
    """SAELens's dataset-wide maps: the same sums, from what its checkpoint holds."""
    from safetensors.torch import save_file

    raw = _sae(arch, "none", subtract, 20, "float64")
    folder = raw.save(tmp_path / "sae")
    record = json.loads((folder / "cfg.json").read_text())
    del record["metadata"]["attlas"]  # a foreign one
    (folder / "cfg.json").write_text(json.dumps({**record, "normalize_activations": kind}))
    whitened = kind == "covariance_whitening"
    scale, mean, matrix = 1.0 if whitened else 0.4, np.zeros(20), np.eye(20)
    if whitened:
        draw = np.random.default_rng(1)
        mean, matrix = draw.normal(size=20), np.eye(20) + 0.1 * draw.normal(size=(20, 20))
        stored = {"mean": mean, "matrix": matrix, "inverse_matrix": np.linalg.inv(matrix)}
        save_file({n: torch.from_numpy(t) for n, t in stored.items()}, folder / "activation_whitening.safetensors")
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale, "has_whitening": whitened}))
    z = _random_attention()[2].numpy()
    _check_sums(SAE.load(folder), _by_hand(raw, (scale * z - mean) @ matrix))


# Subtracted by turns: each architecture meets each normalisation, and each of them both ways.
@pytest.mark.parametrize(("arch", "normalisation", "subtract"), [k for i, k in enumerate(KINDS) if (i // 2 + i) % 2])
def test_traces_and_attribution_of_a_model_add_up(
    tiny_llama: HookedModel, arch: str, normalisation: str, subtract: bool
) -> None:
    """A feature of every kind, through grouped heads: attribution, trace of it, trace of logits through it."""
    model, dest = tiny_llama, 6
    sae = _sae(arch, normalisation, subtract, model.cfg.n_heads * model.cfg.d_head)
    sae.cfg = SAEConfig.from_json({**sae.cfg.to_json(), "model_hash": model.weight_hash})
    tokens = torch.randint(101, (1, 8), generator=torch.Generator().manual_seed(7))
    cache = model.capture(tokens, attribution_hooks(model, HOOK))
    x = cache[HOOK][0, dest].flatten()
    f = sae.encode(x).detach()
    feature = int(f.argmax())
    assert f[feature] > 0
    frozen = FrozenPass(model, tokens, {HOOK: sae})
    at, where = torch.arange(sae.cfg.d_sae), torch.full((sae.cfg.d_sae,), dest)
    for path, by_hand in _by_hand(sae, x.double().numpy()).items():
        found = attribute_features(model, sae, HOOK, cache, at, where, path=path, keep_heads=True)
        np.testing.assert_allclose(found.pre_activation, by_hand, atol=1e-5, rtol=1e-5)
        _, constant, value = feature_row(frozen, 1, feature, dest, path)
        dfa = direct_attribution(frozen, 1, feature, dest, path)
        assert value == pytest.approx(by_hand[feature], abs=1e-5)
        assert float(dfa.sum()) + constant == pytest.approx(value, abs=1e-5)
        assert found.dfa.by_head_source is not None
        np.testing.assert_allclose(found.dfa.by_head_source[feature, :, : dest + 1], dfa, atol=1e-5)
    graph = trace(model, tokens, FeatureTarget(1, feature, dest), TraceConfig(threshold=0, top_n=10_000), frozen=frozen)
    assert graph.nodes[0].value == pytest.approx(float(f[feature]), rel=1e-5)
    assert sum(e.weight for e in graph.into(graph.target)) == pytest.approx(float(f[feature]), rel=1e-5)
    through = trace(model, tokens, LogitTarget((3,), (5,)), TraceConfig(threshold=0.05, top_n=20), frozen=frozen)
    explained = [n for n in through.nodes if n.kind == "feature" and n.followed]
    assert explained
    for node in explained:
        into = through.into(node.id)
        assert sum(e.weight for e in into) == pytest.approx(node.value, abs=1e-4)
        assert sum(e.influence for e in into) == pytest.approx(node.influence, abs=1e-4)


def test_features_tables_hold_both_paths(tiny_llama: HookedModel) -> None:
    data = TokenDataset(torch.randint(1, 90, (4, 24), generator=torch.Generator().manual_seed(0)), "random", "0" * 16)
    config = FeaturesConfig(batch_size=3, n_top=2, n_sample=4, context=64, null_draws=0)
    for arch in ("gated", "topk"):
        sae = _sae(arch, "layer_norm", True, tiny_llama.cfg.n_heads * tiny_llama.cfg.d_head)
        sae.cfg = SAEConfig.from_json({**sae.cfg.to_json(), "model_hash": tiny_llama.weight_hash})
        rows = features(tiny_llama, sae, data, config).tables()["examples"].to_pylist()
        z = tiny_llama.capture(data.tokens, HOOK)[HOOK].flatten(2)
        by_hand = _by_hand(sae, z.double().numpy())
        top = [row for row in rows if row["stratum"] == "top"]
        assert len(top) > 20
        for row in top:
            at = (row["sequence"], row["position"], row["feature"])
            total = sum(row["dfa_heads"]) + row["dfa_constant"]
            assert total == pytest.approx(by_hand["magnitude"][at], abs=1e-5)
            assert total == pytest.approx(row["activation"], abs=1e-5)
            assert sum(row["dfa_sources"]) + row["dfa_outside"] == pytest.approx(sum(row["dfa_heads"]), abs=1e-5)
            if arch == "topk":
                assert row["dfa_gate_heads"] is row["dfa_gate_sources"] is row["dfa_gate_constant"] is None
                continue
            gate = sum(row["dfa_gate_heads"]) + row["dfa_gate_constant"]
            assert gate == pytest.approx(by_hand["gate"][at], abs=1e-5)
            assert gate > 0
            sources = sum(row["dfa_gate_sources"]) + row["dfa_gate_outside"]
            assert sources == pytest.approx(sum(row["dfa_gate_heads"]), abs=1e-5)


def test_what_has_no_gate_or_no_heads_is_refused(tiny_llama: HookedModel) -> None:
    sae = _sae("jumprelu", "none", True, 20)
    with pytest.raises(ConfigError, match="path 'gate' is not in a jumprelu autoencoder; use magnitude"):
        encoder_columns(sae, path=PATHS[1])
    with pytest.raises(ConfigError, match="hook_attn_out"):
        attribution_hooks(tiny_llama, "blocks.1.hook_attn_out")

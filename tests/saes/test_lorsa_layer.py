"""A Lorsa on its layer: measured beside autoencoders, its features with their z patterns, and their page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from attlas.analyses.features import FeaturesConfig, LorsaFeatures, lorsa_features
from attlas.dashboard.components.tokens import example
from attlas.dashboard.pages.features import feature as page
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import LIGHT
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError, UnsupportedModelError
from attlas.interp import HookedModel, load_model
from attlas.saes import SAE, EvalConfig, Lorsa, SAEConfig, evaluate, evaluate_layer
from attlas.saes.architectures import create_sae

from .lorsas import drawn

HOOKS = {"hook_in": "blocks.1.ln1.hook_normalized", "hook_out": "blocks.1.hook_attn_out"}
QUICK = EvalConfig(n_bootstrap=0, controls=())


@pytest.fixture(scope="module")
def gpt2() -> HookedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return load_model(GPT2LMHeadModel(config).eval())


@pytest.fixture(scope="module")
def text() -> TokenDataset:
    rows = [
        [0, *torch.randint(1, 60, (n - 1,), generator=torch.Generator().manual_seed(n)).tolist()] for n in (12, 7, 9)
    ]
    return TokenDataset.padded(rows, "documents", pad=60)


@pytest.fixture(scope="module")
def lorsa() -> Lorsa:
    return drawn(d_model=16, d_sae=12, n_qk_heads=2, n_ctx=16, skip_positions=1, **HOOKS).float()


@pytest.fixture(scope="module")
def sae() -> SAE:
    torch.manual_seed(1)
    cfg = SAEConfig(16, 20, k=3, hook_name="blocks.1.attn.hook_z", n_heads=2, d_head=8, skip_positions=1)
    made = create_sae(cfg)
    made.W_enc.data.normal_()
    made.W_dec.data.normal_()
    return made.requires_grad_(False)


def test_both_are_measured_on_the_layers_output(gpt2: HookedModel, text: TokenDataset, lorsa: Lorsa, sae: SAE) -> None:
    found = evaluate_layer({"lorsa": lorsa, "topk": sae}, gpt2, text, QUICK)
    y, y_hats, active, losses = [], {"lorsa": [], "topk": []}, {"lorsa": [], "topk": []}, {"lorsa": [], "topk": []}
    for row in range(3):  # each document alone, by hand
        n = int(text.mask[row].sum())
        tokens = text.tensor[row : row + 1, :n]
        cache = gpt2.capture(tokens, [*HOOKS.values(), "blocks.1.attn.hook_z"])
        z = sae.encode(cache["blocks.1.attn.hook_z"])
        by_hand = {
            "lorsa": (lorsa(cache[HOOKS["hook_in"]]), lorsa.encode(cache[HOOKS["hook_in"]])),
            "topk": (sae.decode(z) @ gpt2.W_O(1).reshape(16, 16) + gpt2.b_O(1), z),
        }
        y.append(cache[HOOKS["hook_out"]][0, 1:])
        for name, (y_hat, f) in by_hand.items():
            y_hats[name].append(y_hat[0, 1:])
            active[name].append((f > 0).sum(-1)[0, 1:])

            def put(value: Any, _: str, y_hat: Any = y_hat) -> Any:
                return torch.cat((value[:, :1], y_hat[:, 1:]), 1)

            with gpt2.hooks({HOOKS["hook_out"]: put}), torch.no_grad():
                logits = gpt2(tokens)
            losses[name].append(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum"))
    truth = torch.cat(y)
    variance = (truth - truth.mean(0)).pow(2).sum()
    for name in ("lorsa", "topk"):
        error = (torch.cat(y_hats[name]) - truth).pow(2).sum()
        assert found.value("explained_variance", name) == pytest.approx(
            float((1 - error / variance).detach()), rel=1e-4
        )
        assert found.value("l0", name) == pytest.approx(float(torch.cat(active[name]).double().mean()))
        assert found.value("ce_spliced", name) == pytest.approx(float(sum(losses[name]) / (28 - 3)), rel=1e-5)
    alone = evaluate(sae, gpt2, text, QUICK)  # z spliced in at hook_z is the same model
    assert found.value("ce_spliced", "topk") == pytest.approx(alone.value("ce_spliced"), rel=1e-5)
    assert found.value("dead_fraction", "topk") == alone.value("dead_fraction")


def test_what_does_not_stand_beside_it_is_refused(
    gpt2: HookedModel, vit_mini: HookedModel, text: TokenDataset, lorsa: Lorsa
) -> None:
    other = create_sae(SAEConfig(16, 20, k=3, hook_name="blocks.0.attn.hook_z"))
    with pytest.raises(ConfigError, match="several layers"):
        evaluate_layer({"lorsa": lorsa, "topk": other}, gpt2, text, QUICK)
    of_mlp = create_sae(SAEConfig(16, 20, k=3, hook_name="blocks.1.hook_mlp_out"))
    with pytest.raises(ConfigError, match="hook_z or hook_attn_out"):
        evaluate_layer({"lorsa": lorsa, "mlp": of_mlp}, gpt2, text, QUICK)
    with pytest.raises(UnsupportedModelError, match="in both directions"):
        lorsa_features(vit_mini, lorsa, text)
    with pytest.raises(ConfigError, match="does not say which layer"):
        lorsa_features(gpt2, drawn(), text)


@pytest.fixture(scope="module")
def described(gpt2: HookedModel, text: TokenDataset, lorsa: Lorsa) -> LorsaFeatures:
    return lorsa_features(gpt2, lorsa, text, FeaturesConfig(n_top=2, batch_size=2, context=4))


def test_examples_have_their_z_patterns(
    described: LorsaFeatures, gpt2: HookedModel, text: TokenDataset, lorsa: Lorsa
) -> None:
    x = gpt2.capture(text.tensor, HOOKS["hook_in"])[HOOKS["hook_in"]]
    z = lorsa.encode(x).detach() * text.mask[..., None]
    z[:, 0] = 0
    assert torch.equal(described.stream.count, (z > 0).flatten(0, 1).sum(0))
    strongest = z.amax((0, 1))
    assert described.examples
    for e in described.examples:
        assert e.by_source is not None
        assert e.activation == pytest.approx(float(z[e.sequence, e.position, e.feature]), rel=1e-5)
        assert float(e.by_source.sum()) == pytest.approx(e.activation, rel=1e-4)
        assert not e.by_source[e.position + 1 :].any()
        if (e.stratum, e.rank) == ("top", 0):
            assert e.activation == pytest.approx(float(strongest[e.feature]), rel=1e-5)


def _words(node: Any) -> str:
    if node is None or isinstance(node, str | int | float):
        return str(node or "")
    if isinstance(node, list | tuple):
        return " ".join(_words(part) for part in node)
    return _words(getattr(node, "children", None))


def test_the_feature_page_shows_the_z_pattern(described: LorsaFeatures, gpt2: HookedModel, tmp_path: Path) -> None:
    run = described.save(Workspace(tmp_path), gpt2.ref)
    feature = described.examples[-1].feature
    reader = WorkspaceReader(tmp_path)
    data = page.data(reader, {"run": run.id, "id": str(feature)})
    assert (data["hook"], data["qk_heads"]) == ("blocks.1.hook_attn_out", 2)
    said = _words(page.view(data, LIGHT))
    assert f"Query–key head {feature // 6} of 2" in said
    assert "z pattern: " in said
    row = next(r for r in data["examples"])
    assert "z pattern" in _words(example(row, 1.0, z_pattern=True))
    assert "z pattern" not in _words(example(row, 1.0))

"""A Gemma-2-shaped model and an SAE in Gemma Scope's layout, by name: through features, its page and circuits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from attlas.cli import main
from attlas.dashboard.pages import pages
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.theme import theme
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.workspace import Workspace
from attlas.interp import load_model
from attlas.saes import load_sae
from attlas.saes.identity import check_sae

N_HEADS, D_HEAD, N_FEATURES = 4, 16, 48


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gemma-2-2b in small: grouped queries, local and global layers, caps, a head width that is not d_model / heads."""
    folder = tmp_path_factory.mktemp("hub") / "gemma-2-2b"
    config = Gemma2Config(
        vocab_size=4096, hidden_size=40, num_hidden_layers=2, num_attention_heads=N_HEADS, num_key_value_heads=2,
        intermediate_size=96, head_dim=D_HEAD, sliding_window=16, query_pre_attn_scalar=16, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    model.save_pretrained(folder)
    for path in EMBEDDED_DIR.glob("gpt2-mini/*token*.json"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local copy of a release with one SAE for layer 1, and one of another width for layer 0."""
    cache = tmp_path_factory.mktemp("cache")
    for layer, d_in in ((1, N_HEADS * D_HEAD), (0, 24)):
        W = np.random.default_rng(layer).normal(size=(N_FEATURES, d_in)).astype(np.float32)
        W /= np.linalg.norm(W, axis=1, keepdims=True)
        folder = cache / "saes" / "gemma-scope-2b-pt-att" / f"layer_{layer}" / "width_48" / "average_l0_9"
        folder.mkdir(parents=True)
        fill = {name: np.full(N_FEATURES, value, np.float32) for name, value in (("b_enc", -0.1), ("threshold", 0.2))}
        np.savez(folder / "params.npz", W_enc=W.T, W_dec=W, b_dec=np.zeros(d_in, np.float32), **fill)
    return cache


@pytest.fixture(autouse=True)
def here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTLAS_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_features_page_and_circuit(gemma: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [
        "--model",
        str(gemma),
        "--sae",
        "gemma-scope-2b-pt-att/1",
        "-w",
        str(tmp_path / "w"),
        "--json",
        "--device",
        "cpu",
    ]
    quick = ["--n-top", "2", "--null-draws", "5", "--n-scored", "2", "--n-causal", "1"]
    assert main(["features", *common, "--n-tokens", "256", "--seq-len", "32", *quick]) == 0
    capsys.readouterr()
    workspace = Workspace(tmp_path / "w")
    (run,) = workspace.runs("features")
    densities = workspace.read_table(run, "features")["density"].to_numpy()
    assert 0 < densities.mean() < 1
    reader = WorkspaceReader(tmp_path / "w")
    alive = int(densities.argmax())
    page = next(page for page in pages() if page.path == "/feature")
    data = page.data(reader, {"run": run.id, "id": str(alive)})
    assert data["found"]
    drawn = page.view(clean(data), theme("light"))
    shown = json.dumps(drawn, default=lambda component: component.to_plotly_json())
    examples = [row for row in workspace.read_table(run, "examples").to_pylist() if row["feature"] == alive]
    assert any(len(token.strip()) > 2 and token.strip() in shown for row in examples for token in row["tokens"])
    prompt = ["--prompt", "the cat sat on the mat. the cat"]
    assert main(["circuit", "trace", *common, *prompt, "--depth", "1"]) == 0
    graph = workspace.runs("circuit")[0]
    names = json.dumps([workspace.read_table(graph, name).to_pylist() for name in graph.tables], default=str)
    assert "feature 1/" in names
    capsys.readouterr()
    assert main(["circuit", "dla", *common, *prompt, "--answer", " sat", "--wrong", " the", "--by", "feature"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = [row["contribution"] for row in found["rows"]]
    assert any("feature" in row["name"] for row in found["rows"])
    model = load_model(gemma, device="cpu")
    assert np.isfinite(parts).all()
    assert model.cfg.n_heads * model.cfg.d_head == 64 != model.cfg.d_model


def test_an_sae_of_another_model_is_noticed(gemma: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By width and hook, which refuse; by name, which warns."""
    argv = ["eval", "--n-tokens", "128", "--seq-len", "32", "-w", str(tmp_path / "w"), "--device", "cpu"]
    assert main([*argv, "--model", str(gemma), "--sae", "gemma-scope-2b-pt-att/0"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "d_in=24 and the activations have 64 at 'blocks.0.attn.hook_z' of gemma-2-2b" in said
    assert "'google/gemma-2-2b'" in said
    model, sae = load_model(gemma, device="cpu"), load_sae("gemma-scope-2b-pt-att/1")
    assert check_sae(sae, model) == "blocks.1.attn.hook_z"  # its own model, by name: no warning
    other = load_model(shutil.copytree(gemma, tmp_path / "gemma-2-9b"), device="cpu")
    with pytest.warns(UserWarning, match=r"trained on google/gemma-2-2b .* this is gemma-2-9b"):
        check_sae(sae, other)

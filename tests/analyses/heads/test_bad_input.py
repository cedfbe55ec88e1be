"""What little or bad data makes of the head atlas: a result that says what it lacks, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.heads import HeadsConfig, SimilarConfig, head_atlas, similar_heads
from attlas.cli import main
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import AttlasError
from attlas.interp import HookedModel, load_model

FEW = HeadsConfig(batch_size=2, n_control=2, n_repeats=2)


@pytest.fixture
def one_head() -> HookedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=12, n_embd=8, n_layer=1, n_head=1))
    return load_model(hf.eval(), device="cpu")


def _tokens(*shape: int) -> TokenDataset:
    return TokenDataset.from_tokens(torch.randint(31, shape, generator=torch.Generator().manual_seed(1)), "random")


def test_one_head_of_one_layer(one_head: HookedModel, tmp_path: Path) -> None:
    data = _tokens(3, 9)
    atlas = head_atlas(one_head, data, FEW)
    run = atlas.save(Workspace(tmp_path), one_head, data)
    assert Workspace(tmp_path).read_table(run, "heads").num_rows == 1
    assert atlas.summary()["top_induction_head"] == "0.0"
    np.testing.assert_allclose(atlas.account().sum(0), 1, atol=1e-6)
    alike = similar_heads(one_head, data, SimilarConfig(n_control=2))
    assert alike.tables()["head_similar"].num_rows == 0
    assert alike.tables()["head_clusters"].num_rows == 1
    assert alike.plot().data


def test_sequences_of_one_token(one_head: HookedModel, tmp_path: Path) -> None:
    """Nothing to attend to but itself: numbers of later queries are 0, and the run can be kept."""
    data = _tokens(3, 1)
    atlas = head_atlas(one_head, data, FEW)
    scores = atlas.scores()
    assert scores["self_attention_score"] == pytest.approx(1)
    assert scores["pattern_entropy"] == pytest.approx(0, abs=1e-6)
    assert scores["prev_token_score"] == 0
    assert not atlas.account().any()
    assert all(np.isfinite(weight).all() for weight in atlas.sums.sums.values())
    atlas.save(Workspace(tmp_path), one_head, data)


def test_one_sequence_has_no_interval(one_head: HookedModel) -> None:
    rows = head_atlas(one_head, _tokens(1, 9), FEW).tables()["head_account"].to_pylist()
    assert all(row["low"] is None or np.isnan(row["low"]) for row in rows)
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-6)


def test_a_text_shorter_than_one_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("To be or not.", encoding="utf-8")
    asked = ["heads", "--model", "gpt2-mini", "--text", str(tmp_path / "short.txt"), "--seq-len", "256"]
    assert main([*asked, "--workspace", str(tmp_path / "ws")]) != 0
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "256" in said, said
    assert "Traceback" not in said


def test_what_is_not_finite_is_said(one_head: HookedModel) -> None:
    with torch.no_grad():
        one_head.structure.embed.weight[7] = torch.nan
    data = TokenDataset.from_tokens(torch.tensor([[1, 2, 3], [4, 7, 5]]), "with a bad row")
    with pytest.raises(AttlasError, match=r"(?i)nan|finite"):
        head_atlas(one_head, data, FEW)
    assert np.isfinite(head_atlas(one_head, data.take(1), HeadsConfig(n_control=0, n_repeats=0)).account()).all()

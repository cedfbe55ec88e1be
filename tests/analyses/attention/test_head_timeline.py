"""Heads over checkpoints, and entropy collapse in small."""

from __future__ import annotations

import numpy as np
import pytest

from attlas.analyses.attention.head_timeline import TimelineConfig, TimelineResult, timeline
from attlas.data.checkpoints import find_checkpoints
from attlas.data.models_catalog import EMBEDDED_DIR
from attlas.data.text import load_tokens
from attlas.errors import AttlasError
from attlas.interp import HookedModel

CHECKPOINTS = EMBEDDED_DIR / "gpt2-mini" / "checkpoints"


@pytest.fixture(scope="module")
def births(gpt2_mini: HookedModel) -> TimelineResult:
    text = load_tokens("embedded:val", gpt2_mini.tokenizer, seq_len=128, n_tokens=1_024)
    return timeline(find_checkpoints(CHECKPOINTS), lambda _model: text, TimelineConfig(n_repeats=2))


def test_checkpoints_come_in_order_of_steps() -> None:
    steps = [c.step for c in find_checkpoints(CHECKPOINTS)]
    assert steps == sorted(steps)
    assert {250, 2000, 3500} <= set(steps)
    assert max(steps) == 8847  # the finished model beside the folder


def test_induction_heads_are_born_where_their_score_stays_above_the_null(births: TimelineResult) -> None:
    """Above the null from 2,000 on (3.0, barely: 0.02 against 0.018) and from 3,500 on (3.4); no other head is."""
    found = {(b.layer, b.head): (b.after, b.by) for b in births.births()}
    assert found[3, 0] == (1000, 2000)
    assert found[3, 4] == (2000, 3500)
    table = births.table().to_pandas()
    head = table[(table.layer == 3) & (table["head"] == 0)].sort_values("step")
    assert head.induction.iloc[0] < 0.05
    assert head.induction.iloc[-1] > 0.4
    assert np.isfinite(head.entropy).all()


def test_no_checkpoints_is_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("none")
    with pytest.raises(AttlasError, match="checkpoint"):
        find_checkpoints(empty)
    with pytest.raises(AttlasError):
        find_checkpoints(empty / "not-there")

"""Runs of blocks by angular distance as an order of dropping: against the formula in float64 and masked passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.common.losses import quality
from attlas.analyses.pruning.curve import drop_curve
from attlas.analyses.pruning.curve_config import DropCurveConfig
from attlas.analyses.pruning.scores import Scores
from attlas.cli import main
from attlas.data.text import TokenDataset
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, masked


def _best_start(model: HookedModel, tokens: torch.Tensor, n: int) -> int:
    """argmin over l of mean arccos(cos(x_l, x_{l+n}))/π at the last token, every block recorded on its own."""
    layers = range(model.cfg.n_layers)
    with torch.no_grad():
        cache = model.capture(tokens, ["*.hook_resid_pre", "*.hook_resid_post"])
    depths = [cache[f"blocks.{layer}.hook_resid_pre"] for layer in layers]
    depths.append(cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"])
    x = [depth[:, -1].double().numpy() for depth in depths]
    means = []
    for start in range(model.cfg.n_layers - n + 1):
        a, b = x[start], x[start + n]
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        means.append(np.mean(np.arccos(cosine) / np.pi))
    return int(np.argmin(means))


@pytest.mark.parametrize("name", ["gpt2_mini", "tiny_llama"])
def test_each_number_has_its_own_run(name: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(name)
    draw = torch.Generator().manual_seed(0)
    data = TokenDataset.from_tokens(torch.randint(0, model.cfg.d_vocab, (6, 12), generator=draw), "random")
    order = Scores(model, data).angular()
    assert len(order) == model.cfg.n_layers
    assert order[:0] == []
    for n in range(1, model.cfg.n_layers):
        start = _best_start(model, data.tokens, n)
        assert order[:n] == [("block", layer) for layer in range(start, start + n)]
    with pytest.raises(TypeError, match="place by place"):
        order[1]


def test_the_drop_curve_loses_what_the_run_costs(gpt2_mini: HookedModel, val_tokens: TokenDataset) -> None:
    calibration, held_out = val_tokens.split(0.5)
    config = DropCurveConfig(("block",), (1, 2), ("angular", "reversed"))
    result = drop_curve(gpt2_mini, calibration, held_out, config)
    for n in (1, 2):
        start = _best_start(gpt2_mini, calibration.tokens, n)
        with masked(gpt2_mini, Drop(blocks=tuple(range(start, start + n)))):
            loss = quality(gpt2_mini, held_out)[0]
        (row,) = [r for r in result.rows if (r["order"], r["n_dropped"]) == ("angular", n)]
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
        assert row["dropped"] == [f"block.{layer}" for layer in range(start, start + n)]
        assert result.delta("block", "reversed", n)[0] > row["delta"]  # control: what turns most costs more


def test_other_targets_are_refused_and_a_checkpoint_lacks_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="take block"):
        DropCurveConfig(orders=("ranked", "angular"))
    small = ["--n-tokens", "256", "--calibration-tokens", "256", "--seq-len", "64", "-w", str(tmp_path / "w"), "--json"]
    argv = ["prune", "--order", "angular", "--n", "2", *small]
    assert main([*argv, "--target", "attn"]) == 2
    assert "give --target block" in capsys.readouterr().err
    assert main([*argv, "--target", "block"]) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = (int(name.split(".")[1]) for name in told["dropped"])
    assert second == first + 1
    (run,) = Workspace(tmp_path / "w").runs()
    rows = Workspace(tmp_path / "w").read_table(run, "drop_curve").to_pylist()
    assert rows[-1]["order"] == "angular"

"""What CONTRIBUTING.md promises: an architecture, a family, an analysis, a page and a verb are a file and a line each.

Each is made here, outside the packages, and put into its list; everything that goes through the list then works with it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import attlas
from attlas import cli
from attlas.analyses.registry import TABLES
from attlas.dashboard import pages as dashboard_pages
from attlas.dashboard.page import Page
from attlas.data.result import Result
from attlas.data.schema import TableSchema, column
from attlas.data.workspace import Workspace
from attlas.interp import families
from attlas.interp.families import gpt2
from attlas.saes.architectures import ARCHITECTURES
from attlas.saes.architectures.standard import StandardSAE
from attlas.saes.base import LossTerms, StepContext, squared_error
from attlas.saes.evaluation.measure import EvalConfig, evaluate
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.train import train_sae


class LogPenaltySAE(StandardSAE):
    """Σ log(1 + f) in place of Σ f: the same function at inference, another loss."""

    arch: ClassVar[str] = "logpenalty"

    def loss(self, x: torch.Tensor, step: StepContext) -> LossTerms:
        f_BF = self.encode(x)
        mse = squared_error(x, self.decode(f_BF))
        penalty = self.cfg.sparsity * step.penalty_scale * torch.log1p(f_BF).sum(-1).mean()
        return LossTerms(mse + penalty, {"mse": mse.detach()}, (f_BF > 0).sum(0), (f_BF > 0).sum(-1).float().mean())


def test_an_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpt2_mini: Any, val_tokens: Any):
    monkeypatch.setitem(ARCHITECTURES, "logpenalty", LogPenaltySAE)
    config = TrainConfig(
        arch="logpenalty", n_tokens=2048, d_sae=64, batch_size=256, buffer_tokens=1024, capture_batch=4
    )
    result = train_sae(config, model=gpt2_mini, data=val_tokens, progress=False)
    (sae,) = result.saes.values()
    assert isinstance(sae, LogPenaltySAE)
    assert result.save(tmp_path / "w")[0].summary["arch"] == "logpenalty"
    again = attlas.load_sae(sae.save(tmp_path / "sae"))
    assert type(again) is LogPenaltySAE
    x = torch.randn(5, sae.cfg.d_in)
    torch.testing.assert_close(again(x), sae(x))
    few = val_tokens.take(2)
    found = evaluate(sae, gpt2_mini, few, EvalConfig(functional=False))
    assert found.value("explained_variance") < 1


class ToyConfig(GPT2Config):
    model_type = "toygpt"


class ToyModel(GPT2LMHeadModel):
    config_class = ToyConfig


def test_a_family(monkeypatch: pytest.MonkeyPatch):
    toy = ModuleType("toy_family")
    toy.MODEL_TYPES = ("toygpt",)  # type: ignore[attr-defined]
    toy.describe = gpt2.describe  # type: ignore[attr-defined]
    hf = ToyModel(ToyConfig(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=50)).eval()
    with pytest.raises(attlas.errors.UnsupportedModelError, match="toygpt"):
        attlas.load_model(hf)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, toy))
    model = attlas.load_model(hf)
    ids = torch.arange(12)[None]
    _, cache = model.run_with_cache(ids, names="blocks.*.attn.hook_pattern")
    hf.set_attn_implementation("eager")
    for layer, pattern in enumerate(hf(ids, output_attentions=True).attentions):
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_pattern"], pattern, atol=1e-5, rtol=1e-5)


LENGTHS = TableSchema("lengths", "a layer", (column("layer", pa.int16(), "", "layer index"),))


@dataclass(frozen=True)
class CountConfig:
    seed: int = 0


@dataclass(frozen=True)
class Count(Result):
    kind: ClassVar[str] = "count"
    layers: int
    config: CountConfig

    def tables(self) -> dict[str, pa.Table]:
        return {"lengths": LENGTHS.table({"layer": list(range(self.layers))})}

    def summary(self) -> dict[str, Any]:
        return {"layers": self.layers}


def test_an_analysis_a_page_and_a_verb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpt2_mini: Any, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(TABLES, "count", (LENGTHS,))
    verb = ModuleType("attlas.cli.count")

    @dataclass(frozen=True)
    class Args:
        """Count layers.

        Example:
            attlas count --workspace w
        """

        workspace: Path = tmp_path / "w"
        json: bool = False

    def run(args: Args, out: Any) -> dict[str, Any]:
        return Count(4, CountConfig()).save(args.workspace, gpt2_mini).summary

    verb.Args, verb.run = Args, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "attlas.cli.count", verb)
    monkeypatch.setitem(cli.VERBS, "count", "count layers")
    assert cli.main(["count"]) == 0
    assert "count layers" in cli._usage()
    workspace = Workspace(tmp_path / "w")
    run_ = workspace.latest("count")
    assert run_ is not None
    assert workspace.read_table(run_, "lengths").schema.equals(LENGTHS.arrow)

    page = ModuleType("attlas.dashboard.pages.count")
    page.PAGE = Page("/count", "Count", lambda store, params: {"n": 4}, lambda data, look: str(data["n"]))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "attlas.dashboard.pages.count", page)
    monkeypatch.setattr(dashboard_pages, "MODULES", (*dashboard_pages.MODULES, "count"))
    from attlas.dashboard.app import create_app

    client = create_app(tmp_path / "w").server.test_client()
    assert client.get("/api/count").get_json()["n"] == 4

"""What each family of text models can be asked: every analysis runs, and adds up, or refuses in one line.

`docs/models.md` has the table; ATTLAS_WRITE_DOCS=1 writes it anew.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attlas.analyses import attention, circuits, pruning, redundancy, stability
from attlas.analyses.attention.birth_null import null_scores
from attlas.analyses.common.repeats import repeat_scores, repeated_tokens
from attlas.analyses.features.attribution import attribute_features, attribution_hooks
from attlas.analyses.features.logits import logit_effects
from attlas.data.text import TokenDataset
from attlas.errors import UnsupportedModelError
from attlas.interp import HookedModel, attended, load_model
from attlas.interp.drop import Drop, masked
from attlas.interp.prefix import Prefix
from tests.analyses.conftest import _sae, _task
from tests.interp.tiny_families import TINY, recording, tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
NAMES = [name for name in TINY if name not in ("neox-sequential", "phi4-mini")]
TOLERANCE = 1e-4


@dataclasses.dataclass
class Subject:
    """One family's model, and the same weights in transformers' own eager attention."""

    model: HookedModel
    eager: Any
    text: TokenDataset

    @property
    def tokens(self) -> torch.Tensor:
        return self.text.tokens


def _subject(name: str) -> Subject:
    hf = copy.deepcopy(tiny(name))
    hf.config._attn_implementation = "sdpa" if hf._supports_sdpa else "eager"
    text = TokenDataset.from_tokens(torch.randint(1, 61, (4, 20), generator=torch.Generator().manual_seed(3)), "random")
    return Subject(load_model(hf), copy.deepcopy(tiny(name)), text)


def _patterns(s: Subject) -> list[torch.Tensor]:
    seen = recording(s.eager)
    s.eager(s.tokens, use_cache=False)
    return [layer["pattern"].double() for layer in seen]


def _entropy_of(s: Subject, pattern: torch.Tensor) -> torch.Tensor:
    found = torch.special.entr(pattern).sum(-1)
    return found + torch.special.entr((1 - pattern.sum(-1)).clamp_min(0)) if "sinks" in s.model.cfg.traits else found


def _statistics(s: Subject) -> float:
    """Entropy of every query against that of eager maps; weights of a block of queries against the maps."""
    gaps = []
    for layer, pattern in zip(attended(s.model, s.tokens), _patterns(s), strict=True):
        gaps.append((layer.stats(window=4).entropy - _entropy_of(s, pattern)).abs().max())
        gaps.append((layer.weights(1, slice(0, None))[0] - pattern[1]).abs().max())
    return float(max(gaps))


def _tracker(s: Subject) -> float:
    """Entropies of the tracker's last check; the weights' bound lies below."""
    expected = torch.stack([_entropy_of(s, p).mean((0, 2)) for p in _patterns(s)])
    hf = s.model.hf
    with stability.EntropyTracker(hf, stability.TrackerConfig(every=1, training_only=False)) as tracker:
        hf(s.tokens, use_cache=False)
        tracker.step()
    table = tracker.table().to_pandas().sort_values(["layer", "head"])
    found = torch.tensor(table.entropy.to_numpy()).view_as(expected)
    assert not (table.weight_bound > table.entropy + 1e-4).any()
    return float((found - expected).abs().max())


def _dfa(s: Subject) -> float:
    """Attribution to sources, and its sum: the pre-activation."""
    hook = "blocks.1.attn.hook_z"
    sae = _sae(s.model, 1)
    cache = s.model.capture(s.tokens, attribution_hooks(s.model, hook))
    features, positions, rows = torch.arange(6), torch.tensor([19, 12, 5, 3, 18, 11]), torch.tensor([0, 1, 2, 3, 0, 1])
    found = attribute_features(s.model, sae, hook, cache, features, positions, sequences=rows)
    z = cache[hook].flatten(2)[rows, positions]
    expected = ((z - sae.b_dec) * sae.W_enc.T[features]).sum(-1) + sae.b_enc[features]
    pattern, v = _patterns(s)[1][rows, :, positions], cache["blocks.1.attn.hook_v"][rows]
    group = s.model.cfg.n_heads // s.model.cfg.n_kv_heads
    columns = sae.W_enc.T[features].view(6, s.model.cfg.n_heads, -1).double()
    by_source = torch.einsum("phs,pshe,phe->ps", pattern, v.repeat_interleave(group, 2).double(), columns)
    gaps = (found.pre_activation - expected, found.dfa.by_source - by_source)
    return float(max(gap.abs().max() for gap in gaps))


def _trace(s: Subject) -> float:
    """Recursive DFA from a logit difference through features of layer 0 and heads of layer 1."""
    saes = {"blocks.0.attn.hook_z": _sae(s.model, 0)}
    target = circuits.LogitTarget((5,), (9,))
    graph = circuits.trace(s.model, s.tokens[0], target, circuits.TraceConfig(max_nodes=40), saes=saes)
    kinds = {node.kind for node in graph.nodes}
    assert {"head", "feature"} <= kinds, kinds
    return graph.gap


def _dla(s: Subject) -> float:
    return circuits.dla(s.model, _task(61)).gap


def _qk(s: Subject) -> float:
    config = circuits.QKConfig(layer=1, head=1, dest=8, src=5)
    return circuits.qk_attribution(s.model, s.tokens[0], config).gap


def _logit_effects(s: Subject) -> float:
    """Against the modules: what an RMSNorm makes of ones is what it multiplies with."""
    sae, parts = _sae(s.model, 1), s.model.layers[1]
    found = logit_effects(s.model, sae.W_dec, "blocks.1.attn.hook_z", n=3)

    def weight(norm: Any) -> torch.Tensor:
        ones = torch.ones(s.model.cfg.d_model)
        return norm.weight if isinstance(norm, torch.nn.LayerNorm) else norm(ones)

    written = sae.W_dec @ parts.out_proj.weight.T
    if "post_norm" in s.model.cfg.traits:
        written = written * weight(parts.attn_out)
    if isinstance(s.model.final_norm, torch.nn.LayerNorm):
        written = written - written.mean(-1, keepdim=True)
    effects = (written * weight(s.model.final_norm)) @ s.eager.lm_head.weight.T
    return float((effects.topk(3).values - found[0]).abs().max())


def _patching(s: Subject) -> float:
    """Every hook name that patching takes by head; what a silenced head changes is what a masked one does."""
    task = _task(61)
    with torch.enable_grad():
        result = circuits.patching(s.model, task, circuits.PatchingConfig(mode="zero", by="head"))
    metric = task.metric_fn()
    with masked(s.model, Drop(heads=((0, 1),))):
        changed = metric(s.model(task.tokens))
    expected = (changed - metric(s.model(task.tokens))).double().numpy()
    (index,) = [i for i, site in enumerate(result.sites) if (site.layer, site.head) == (0, 1)]
    return float(abs(result.effects[index] - expected).max())


def _redundancy(s: Subject) -> float:
    """Attention's score from eager hidden states and what the sub-layer adds to them."""
    result = redundancy.redundancy(s.model, s.text)
    states = s.eager(s.tokens, output_hidden_states=True, use_cache=False).hidden_states
    block = 1 - torch.nn.functional.cosine_similarity(states[0], states[1], dim=-1).mean()
    assert ((result.scores >= -1e-6) & (result.scores <= 2)).all()
    return abs(float(result.scores[0, 2]) - float(block))


def _window_loss(s: Subject) -> float:
    """A window as long as the text changes nothing."""
    config = attention.WindowConfig(windows=(3, 20), sinks=1)
    result = attention.window_loss(s.model, s.text, config)
    assert abs(result.delta[3]).max() > 1e-3
    return float(abs(result.delta[20]).max())


def _births(s: Subject) -> None:
    tokens = repeated_tokens(s.model, length=8, n=2)
    scores, null = repeat_scores(s.model, tokens), null_scores(s.model, tokens, n_draws=4)
    assert all(np.isfinite(null[name]).all() for name in scores)


def _cost(s: Subject) -> None:
    result = attention.cost_profile(s.model, attention.CostConfig(lengths=(8,), repeats=1))
    assert len(result.tables()["cost"]) == 4


def _suffix(s: Subject) -> float:
    """Logits from a residual stream kept at layer 1, as drop curves make them."""
    prefix = Prefix(s.model, s.tokens)
    return float((prefix.run_from(1, prefix.residual[1], lambda x: x)[0] - s.eager(s.tokens).logits).abs().max())


def _drop_stock(s: Subject) -> None:
    """`build` compares each with the masked model; the config says as much when it is read again."""
    for parts in (("attn:1", "head:0.1"), ("mlp:0",), ("block:0",)):
        hf, form = pruning.build(s.model, Drop.parse(parts), format="stock")
        assert form == "stock"
    again = type(hf.config).from_dict(hf.config.to_dict())
    assert again.num_hidden_layers == 1
    assert getattr(again, "layer_types", None) == getattr(hf.config, "layer_types", None)


def _drop_compact(s: Subject) -> None:
    pruning.build(s.model, Drop.parse(("attn:1",)), format="compact")


def _reparam(s: Subject) -> float:
    """Wrapped without a change."""
    before = s.model(s.tokens)
    stability.sigma_reparam(s.model.hf, init="preserve")
    return float((s.model(s.tokens) - before).abs().max())


# Each gives its largest error; None where it only has to run, or compares for itself.
ASKED: dict[str, Callable[[Subject], float | None]] = {
    "entropy, anatomy": _statistics,
    "tracker": _tracker,
    "births' nulls": _births,
    "window loss": _window_loss,
    "cost": _cost,
    "redundancy": _redundancy,
    "drop curves": _suffix,
    "stock export": _drop_stock,
    "compact export": _drop_compact,
    "σReparam": _reparam,
    "logit effects": _logit_effects,
    "feature DFA": _dfa,
    "patching": _patching,
    "DLA": _dla,
    "recursive DFA": _trace,
    "QK attribution": _qk,
}


def _row(name: str) -> dict[str, str]:
    """column → "—" where it is refused, "yes" where there is no number, else the largest error, such as 4e-7."""
    found = {}
    for what, ask in ASKED.items():
        with torch.no_grad():
            try:
                gap = ask(_subject(name))
            except UnsupportedModelError:
                found[what] = "—"
                continue
        assert gap is None or gap <= TOLERANCE, f"{name}, {what}: {gap:.2g}"
        found[what] = "yes" if gap is None else re.sub(r"e-0?", "e-", f"{gap:.0e}") if gap else "0"
    return found


def _agree(cell: str, measured: str) -> bool:
    """Errors are rounding, which differs between machines: up to ten times the page's, or 1e-6."""
    if {"—", "yes"} & {cell, measured}:
        return cell == measured
    return float(measured) <= max(10 * float(cell), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_analysis_adds_up_or_refuses_as_the_page_says(name: str) -> None:
    row, start = _row(name), f"| {name} ({TINY[name].like}) |"
    page = PAGE.read_text(encoding="utf-8")
    line = f"{start} {' | '.join(row.values())} |"
    if os.environ.get("ATTLAS_WRITE_DOCS"):
        page = re.sub(rf"^{re.escape(start)}.*$", lambda _: line, page, flags=re.M)
        PAGE.write_text(page, encoding="utf-8")
    (there,) = [at for at in page.splitlines() if at.startswith(start)]
    cells = [cell.strip() for cell in there.removeprefix(start).rstrip("| ").split("|")]
    assert len(cells) == len(row)
    odd = {what: (cell, row[what]) for what, cell in zip(row, cells, strict=True) if not _agree(cell, row[what])}
    assert not odd, f"docs/models.md should have: {line}"


def test_the_page_names_every_column() -> None:
    assert f"| like | {' | '.join(ASKED)} |" in PAGE.read_text(encoding="utf-8")


@torch.no_grad()
def test_entropy_tells_what_learned_sinks_take() -> None:
    s = _subject("gpt-oss")
    found = attention.entropy(s.model, s.text, attention.EntropyConfig(skip_first=0))
    taken = torch.stack([1 - p.sum(-1).mean((0, 2)) for p in _patterns(s)])
    np.testing.assert_allclose(found.columns["learned_sink"], taken, atol=1e-6)
    assert 0 < found.summary()["mean_learned_sink"] < 1
    with pytest.raises(UnsupportedModelError, match="learned attention sinks, which selection layers"):
        attention.selection_layers(s.model, s.text)
    plain = attention.entropy(_subject("qwen3").model, s.text)
    assert not plain.columns["learned_sink"].any()
    assert "mean_learned_sink" not in plain.summary()

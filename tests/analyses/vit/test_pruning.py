"""Greedy pruning of heads against brute force on the whole model."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas.analyses.vit.pruning import VitPruningConfig, vit_pruning
from attlas.analyses.vit.readout import jensen_shannon
from attlas.data.images.dataset import ImageDataset
from attlas.data.splits import stratified_order
from attlas.data.workspace import Workspace
from attlas.errors import ConfigError
from attlas.interp import HookedModel


def _logits(
    model: HookedModel, pixels: torch.Tensor, gone: list[tuple[int, int]], means: dict[str, torch.Tensor] | None = None
) -> torch.Tensor:
    hooks = {}
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_z"
        keep = torch.tensor([[0.0 if (layer, h) in gone else 1.0] for h in range(model.cfg.n_heads)])
        fill = (1 - keep) * means[name] if means else 0.0
        hooks[name] = lambda z, _n, keep=keep, fill=fill: z * keep + fill
    with torch.no_grad(), model.hooks(hooks):
        return model(pixels)


@pytest.mark.parametrize("ablation", ["zero", "mean_per_position"])
def test_greedy_takes_the_cheapest_head_of_all(ablation: str, vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    config = VitPruningConfig(10, 0, max_heads=2, n_random=1, ablation=ablation, batch_size=7, n_bootstrap=20)
    images = glyphs.take(20)
    result = vit_pruning(vit_mini, images, config)
    assert images.labels is not None
    chosen = torch.from_numpy(stratified_order(20, images.labels.numpy(), 0)[:10]).sort().values
    z = vit_mini.capture(images.pixels[chosen], "blocks.*.attn.hook_z") if ablation != "zero" else {}
    means = {name: value.mean(0) for name, value in z.items()}
    clean = _logits(vit_mini, images.pixels[chosen], []).softmax(-1)
    gone: list[tuple[int, int]] = []
    for _ in range(2):
        costs = {}
        for head in product(range(4), range(6)):
            if head not in gone:
                after = _logits(vit_mini, images.pixels[chosen], [*gone, head], means).softmax(-1)
                costs[head] = float(jensen_shannon(clean, after).mean())
        gone.append(min(costs, key=lambda h: costs[h]))
    assert result.orders["greedy"] == gone
    assert result.n_tried == 24 + 23
    rest = torch.tensor([i for i in range(20) if i not in chosen.tolist()])
    for name, order in result.orders.items():
        for step in range(3):
            right = _logits(vit_mini, images.pixels[rest], order[:step], means).argmax(-1) == images.labels[rest]
            np.testing.assert_array_equal(result.curves[name]["accuracy"][step], right.numpy())


def test_curve_ends_where_all_heads_are_gone(vit_mini: HookedModel, glyphs: ImageDataset, tmp_path: Path) -> None:
    images = glyphs.take(24)
    result = vit_pruning(
        vit_mini, images, VitPruningConfig(n_search=8, n_candidates=3, n_random=1, n_bootstrap=20, batch_size=16)
    )
    for order in result.orders.values():
        assert sorted(order) == list(product(range(4), range(6)))
    ends = {name: c["js"][-1] for name, c in result.curves.items()}
    np.testing.assert_allclose(ends["greedy"], ends["random-0"], atol=1e-6)
    np.testing.assert_allclose(ends["greedy"], ends["one-shot"], atol=1e-6)
    assert result.curves["greedy"]["js"][:12].mean() < result.curves["random-0"]["js"][:12].mean()
    run = result.save(Workspace(tmp_path / "ws"), vit_mini.ref, images.ref)
    rows = Workspace(tmp_path / "ws").read_table(run, "pruning_curve").to_pylist()
    assert len(rows) == 3 * 25 * 3
    assert rows[0]["layer"] is None
    assert run.summary["metric"] == "accuracy"


def test_search_must_leave_images(vit_mini: HookedModel, glyphs: ImageDataset) -> None:
    with pytest.raises(ConfigError, match="'resample' is unknown"):
        VitPruningConfig(ablation="resample")
    with pytest.raises(ConfigError, match="lower it"):
        vit_pruning(vit_mini, glyphs, VitPruningConfig(n_search=64))

"""The prune page: its JSON equals the tables, and its slider predicts and measures what the analyses do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attlas.analyses.common.losses import quality
from attlas.analyses.redundancy import redundancy
from attlas.dashboard.app import create_app
from attlas.dashboard.pages.prune.page import on_curve, parse_units, ranking, sample
from attlas.dashboard.pages.prune.view import series
from attlas.data.images.dataset import load_images
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel, load_model
from attlas.interp.drop import Drop, masked


def _get(client: object, url: str) -> dict:
    answer = client.get(url)  # type: ignore[attr-defined]
    assert answer.status_code == 200, answer.data[:300]
    found: dict = json.loads(answer.data)
    return found


def test_predictions_are_those_of_the_tables(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    redundancy, alone, curve = (workspace.latest(kind) for kind in ("redundancy", "module_effects", "drop_curve"))
    assert redundancy is not None and alone is not None and curve is not None  # noqa: PT018
    scores = workspace.read_table(redundancy, "redundancy").to_pandas()
    best = scores[scores.module == "mlp"].sort_values("score").layer.tolist()[:2]
    costs = workspace.read_table(alone, "module_effects").to_pandas().set_index(["module", "layer"]).delta
    points = workspace.read_table(curve, "drop_curve").to_pandas()
    measured = points[(points.target == "mlp") & (points.order == "ranked")].set_index("n_dropped").delta
    page = _get(client, "/api/prune?model=gpt2-mini&target=mlp&n=2")
    it = page["what_if"]
    assert it["units"] == [f"mlp.{layer}" for layer in best]
    assert it["sum_alone"] == pytest.approx(sum(costs["mlp", layer] for layer in best))
    assert it["on_curve"] == pytest.approx(measured[2])
    assert it["measured"] is None
    assert page["live"] is False
    assert _get(client, "/api/prune?target=mlp&n=4")["what_if"]["on_curve"] is None
    assert _get(client, "/api/prune?target=attn&n=99")["what_if"]["n"] == 3
    runs = workspace.read_table(redundancy, "block_runs").to_pandas()
    (start,) = runs[(runs.length == 2) & runs.best].start
    it = _get(client, "/api/prune?target=block&n=2&order=angular")["what_if"]
    assert (it["order"], it["units"]) == ("angular", [f"block.{start}", f"block.{start + 1}"])
    assert it["sum_alone"] == pytest.approx(costs["block", start] + costs["block", start + 1])
    assert _get(client, "/api/prune?target=attn&n=2&order=angular")["what_if"]["order"] == "ranked"
    joint = _get(client, "/api/prune?target=joint&n=3")["what_if"]["units"]
    both = scores[scores.module != "block"].sort_values("score")[:3]
    assert joint == [f"{module}.{layer}" for module, layer in zip(both.module, both.layer, strict=True)]


def test_the_slider_measures_the_masked_model(workspace: Workspace, gpt2_mini: HookedModel) -> None:
    client = create_app(workspace.path).server.test_client()
    page = _get(client, "/api/prune?model=gpt2-mini&target=attn&n=2&measure=1&wait=60")
    assert page["job"]["state"] == "done"
    data = sample(gpt2_mini)
    with torch.no_grad():
        whole = quality(gpt2_mini, data)
        with masked(gpt2_mini, parse_units(page["what_if"]["units"])):
            expected = quality(gpt2_mini, data)
    assert page["what_if"]["measured"]["delta"] == pytest.approx(expected[0] - whole[0], abs=1e-5)
    assert page["what_if"]["measured"]["accuracy"] == pytest.approx(expected[1])
    assert page["what_if"]["measured"]["delta"] > 0.01
    alone = 0.0  # the prediction is made on the same sequences
    for unit in page["what_if"]["units"]:
        with torch.no_grad(), masked(gpt2_mini, parse_units([unit])):
            alone += quality(gpt2_mini, data)[0] - whole[0]
    assert page["what_if"]["sum_alone"] == pytest.approx(alone, abs=1e-5)
    assert page["what_if"]["on_curve"] == pytest.approx(page["what_if"]["measured"]["delta"], abs=1e-5)  # a point of it
    assert page["what_if"]["measured"]["hash"] == data.hash
    assert page["what_if"]["measured"]["low"] < page["what_if"]["measured"]["delta"]


def test_a_pruned_model_is_told_with_what_it_lost(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    lost, pruned = workspace.latest("what_dies"), workspace.latest("prune")
    assert lost is not None and pruned is not None  # noqa: PT018
    features = workspace.read_table(lost, "features_lost").to_pandas()
    page = _get(client, "/api/prune?model=gpt2-mini&state=weaker")
    assert page["pruned_run"] == pruned.id
    assert page["pruned_summary"]["dropped"] == ["attn.2"]
    assert [r["step"] for r in page["healing"]] == [0, 1, 2]
    it = page["what_dies"]
    weaker = features[features.state == "weaker"].sort_values(["size_before", "feature"], ascending=[False, True])
    assert [r["feature"] for r in it["rows"]] == weaker.feature.tolist()[:200]
    assert sum(it["features"]["blocks.3.attn.hook_z"].values()) == len(features)
    assert {r["task"] for r in it["behaviours"]} == {"ioi", "induction", "induction-natural"}
    assert it["features_run"] is not None
    assert it["examples"][0]["tokens"]


def test_lines_between_points() -> None:
    rows = [
        {"target": "none", "order": "dense", "n_dropped": 0, "delta": 0.0},
        *({"target": "attn", "order": "ranked", "n_dropped": n, "delta": d} for n, d in ((2, 0.4), (4, 1.0))),
        *({"target": "attn", "order": "random", "n_dropped": 2, "delta": d} for d in (0.5, 1.5)),
    ]
    assert on_curve(rows, "attn", 1) == pytest.approx(0.2)
    assert on_curve(rows, "attn", 3) == pytest.approx(0.7)
    assert on_curve(rows, "attn", 5) is None
    assert on_curve(rows, "mlp", 1) is None
    assert series(rows, "delta", "all")["attn, random"] == ((0, 2), (0.0, 1.0))
    rows.append({"target": "attn", "order": "random", "n_dropped": 2, "delta": 9.0})
    assert series(rows, "delta", "all")["attn, random"][1] == (0.0, 1.5)  # the median
    assert series(rows, "delta", "mlp") == {}
    assert parse_units(["attn.3", "head.2.4", "block.1", "attn.0"]) == Drop((0, 3), (), (1,), ((2, 4),))
    tied = [{"target": "attn", "unit": f"attn.{i}", "layer": i, "score": 0.1} for i in range(2)]
    assert [r["unit"] for r in ranking(tied, "attn")] == ["attn.1", "attn.0"]


def test_a_colour_model_is_measured_on_colour_pictures(tmp_path: Path) -> None:
    """Also without a classifier: 1 − cosine of features then, by transformers alone."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    hf = ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8), add_pooling_layer=False).eval()
    hf.save_pretrained(tmp_path / "colour")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "colour")
    model = load_model(tmp_path / "colour", device="cpu")
    images = load_images("sklearn:samples", model.image_spec, n_images=64, seed=0)
    workspace = Workspace(tmp_path / "w")
    redundancy(model, images.take(4)).save(workspace, model, images)
    client = create_app(workspace.path, {"colour": str(tmp_path / "colour")}).server.test_client()
    url = "/api/prune?model=colour&target=attn&n=1&measure=1&wait=60"
    measured = _get(client, url)["what_if"]["measured"]
    assert (measured["data"], measured["hash"]) == ("sklearn:samples", images.hash)
    assert measured["accuracy"] is None
    (unit,) = _get(client, url)["what_if"]["units"]
    with torch.no_grad():
        whole = hf(images.pixels).last_hidden_state
        hf.layers[int(unit[-1])].attention.register_forward_hook(lambda *_: (torch.zeros_like(whole), None))
        less = hf(images.pixels).last_hidden_state
    ends = [torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=-1) for x in (whole, less)]
    expected = (1 - torch.nn.functional.cosine_similarity(*ends, dim=-1)).mean().item()
    assert measured["delta"] == pytest.approx(expected, rel=1e-3)
    assert measured["unit"] == "1 − cosine of features"

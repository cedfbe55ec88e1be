"""The vision pages' JSON against tables and passes done by hand; uploads of every kind; families of every shape."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from attlas.analyses.vit.one_image import feature_heat, image_attention
from attlas.analyses.vit.relevance import class_relevance
from attlas.dashboard.app import create_app
from attlas.dashboard.page import parse_heads
from attlas.dashboard.pages.features import feature
from attlas.dashboard.pages.image import page as image
from attlas.dashboard.pages.vit import head as vit_head
from attlas.dashboard.pages.vit import page as vit
from attlas.dashboard.reader import WorkspaceReader, clean
from attlas.dashboard.theme import theme
from attlas.data.images.dataset import load_images
from attlas.data.images.processor import to_array
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import load_sae


def _asked(reader: WorkspaceReader, **params: str) -> dict[str, Any]:
    """The image page's data when its work is done; drawn, too."""
    until = time.monotonic() + 120
    found = image.data(reader, params)
    while found["live"] and time.monotonic() < until:
        time.sleep(0.02)
        found = image.data(reader, params)
    assert not found["live"]
    shown = clean(found)
    json.dumps(image.view(shown, theme("dark")), default=lambda component: component.to_plotly_json())
    return shown  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def reader(vision_workspace: Workspace) -> WorkspaceReader:
    return WorkspaceReader(vision_workspace.path)


def _png(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def test_overview_holds_the_tables(vision_workspace: Workspace, reader: WorkspaceReader) -> None:
    client = create_app(vision_workspace.path).server.test_client()
    page = json.loads(client.get("/api/vit?heads=0.1,9.9,x,2.3&map=7&cluster=1&layer=2&head=3").data)
    assert page["lit"] == [[0, 1], [2, 3]]
    run = vision_workspace.latest("vit_patterns")
    assert run is not None
    patterns = vision_workspace.read_table(run, "patterns").to_pandas()
    found = page["patterns"]
    assert found["points"]["map"] == patterns["map"].tolist()
    assert found["points"]["cluster"] == patterns.cluster.tolist()
    assert found["chosen"]["head"] == patterns["head"].iloc[7]
    assert set(found["members"]) <= set(patterns[patterns.cluster == 1]["map"])
    pruning = vision_workspace.latest("vit_pruning")
    assert pruning is not None
    curve = vision_workspace.read_table(pruning, "pruning_curve").to_pandas()
    wanted = curve[curve.metric == page["pruning"]["metric"]].sort_values(["order", "n_pruned"])
    assert [r["value"] for r in page["pruning"]["rows"]] == pytest.approx(wanted.value.tolist())
    removal = json.loads(client.get("/api/vit?before=1").data)["tokens"]
    assert removal["layers"] == [0, 1]
    assert {r["layer"] for r in removal["rows"]} == {1}
    assert len(page["agreement"]) > 5


def test_pictures_of_maps(vision_workspace: Workspace) -> None:
    client = create_app(vision_workspace.path).server.test_client()
    run = vision_workspace.latest("vit_patterns")
    assert run is not None
    answer = client.get(f"/picture/{run.id}/7.png")
    assert answer.status_code == 200
    pixels = np.asarray(Image.open(io.BytesIO(answer.data)))
    assert pixels.shape == (128, 2 * 128 + 4, 3)
    row = vision_workspace.read_table(run, "patterns").to_pandas().iloc[7]
    thumbnail = vision_workspace.read_arrays(run, "patterns")["thumbnails"][int(row.thumbnail)]
    np.testing.assert_array_equal(pixels[2::4, 2:128:4], thumbnail)
    for bad in (
        f"/picture/{run.id}/99999.png",
        "/picture/nothing/0.png",
        "/picture/../0.png",
        f"/picture/{run.id}/-1.png",
    ):
        assert client.get(bad).mimetype != "image/png"


def test_a_head_is_what_its_rows_say(vision_workspace: Workspace, reader: WorkspaceReader) -> None:
    run = vision_workspace.latest("vit")
    assert run is not None
    table = vision_workspace.read_table(run, "importance").to_pandas()
    found = clean(vit_head.data(reader, {"layer": "2", "head": "3", "measure": "mean_per_position:js"}))
    mine = table[(table.layer == 2) & (table["head"] == 3)]
    assert len(found["importance"]) == len(mine)
    for row in found["importance"]:
        same = table[(table.metric == row["metric"]) & (table.ablation == row["ablation"])].set_index(["layer", "head"])
        assert row["value"] == pytest.approx(same.value[2, 3])
        assert row["rank"] == same.value.rank(ascending=False, method="min")[2, 3]
    by_class = vision_workspace.read_table(run, "importance_by_class").to_pandas()
    wanted = by_class[(by_class.layer == 2) & (by_class["head"] == 3)]
    wanted = wanted[(wanted.metric == "js") & (wanted.ablation == "mean_per_position")].sort_values("class")
    assert [r["value"] for r in found["by_class"]] == pytest.approx(wanted.value.tolist())
    assert sum(r["share"] for r in found["patterns"]["shares"]) == pytest.approx(1)
    for params in ({}, {"layer": "9", "head": "1"}, {"layer": "x"}):
        assert not vit_head.data(reader, params)["found"]


@pytest.mark.parametrize("color", ["cluster", "layer", "head", "importance", "nonsense"])
def test_the_plane_in_every_colour(color: str, reader: WorkspaceReader) -> None:
    found = clean(vit.data(reader, {"color": color, "heads": "1.1", "map": "3", "cluster": "99"}))
    drawn = json.dumps(vit.view(found, theme("light")), default=lambda component: component.to_plotly_json())
    assert "/picture/vit_patterns-" in drawn
    assert found["patterns"]["cluster"] is None


def test_a_sample_under_every_head(reader: WorkspaceReader, vision_workspace: Workspace, vit_mini: HookedModel) -> None:
    samples = load_images("embedded:glyphs", vit_mini.image_spec, n_images=24, seed=0)
    found = _asked(reader, image="4", row="2", column="5", prune="0.1,1.3", beside="7")
    by_hand = image_attention(vit_mini, samples.pixels[4])
    np.testing.assert_allclose(found["picture"]["maps"], by_hand.maps(2 * 8 + 5), atol=2e-5)
    with torch.no_grad():
        before = vit_mini(samples.pixels[[4, 7]]).softmax(-1)

        def without(z: torch.Tensor, name: str) -> torch.Tensor:
            z = z.clone()
            z[:, :, {"0": 1, "1": 3}[name.split(".")[1]]] = 0
            return z

        with vit_mini.hooks({f"blocks.{layer}.attn.hook_z": without for layer in (0, 1)}):
            after = vit_mini(samples.pixels[[4, 7]]).softmax(-1)
    top = before[0].topk(5)
    assert [t["class"] for t in found["picture"]["top"]] == top.indices.tolist()
    for where, effect in enumerate(("effect", "other_effect")):
        for row in found[effect]["rows"]:
            assert row["before"] == pytest.approx(float(before[where, row["class"]]), abs=1e-5)
            assert row["after"] == pytest.approx(float(after[where, row["class"]]), abs=1e-5)
    (run,) = vision_workspace.runs("sae")
    sae = load_sae(vision_workspace.folder(run))
    heat = feature_heat(vit_mini, sae, samples.pixels[4])
    assert [f["feature"] for f in found["features"]] == [h.feature for h in heat]
    np.testing.assert_allclose(found["features"][0]["heat"], heat[0].heat, atol=2e-5)
    assert found["features_run"] is not None
    likeliest = int(before[0].argmax())
    for params, chosen in (({}, likeliest), ({"class": "3"}, 3)):
        told = _asked(reader, image="4", **params)
        expected = class_relevance(vit_mini, samples.pixels[[4]], torch.tensor([chosen]))[0].reshape(8, 8)
        np.testing.assert_allclose(told["relevance"], expected, atol=1e-6)
        assert told["classes"][0]["class"] == likeliest
    whole = _asked(reader, image="4")
    np.testing.assert_allclose(whole["picture"]["maps"], by_hand.maps(None), atol=2e-5)
    np.testing.assert_allclose(whole["picture"]["rollout"], by_hand.rollout, atol=2e-6)


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("L", (9, 300), 90),
        Image.new("RGBA", (50, 40), (200, 10, 10, 128)),
        Image.new("P", (33, 31)),
        Image.new("I;16", (40, 40), 3000),
        Image.new("1", (10_000, 5_000)),  # 50 megapixels
    ],
    ids=["grey-narrow", "rgba", "palette", "16-bit", "50-megapixels"],
)
def test_uploads_of_every_kind(picture: Image.Image, reader: WorkspaceReader, vit_mini: HookedModel) -> None:
    content = _png(picture)
    found = _asked(reader, image=reader.jobs.keep_upload(content))
    assert found["picture"]["caption"] == "your picture"
    pixels = vit_mini.image_spec.normalise(to_array(content, vit_mini.image_spec)[None])[0]
    np.testing.assert_allclose(found["picture"]["maps"], image_attention(vit_mini, pixels).maps(None), atol=2e-5)


def test_uploads_that_are_no_pictures_are_told_in_a_line(reader: WorkspaceReader) -> None:
    whole = _png(Image.effect_noise((64, 64), 50).convert("RGB"))
    for content in (b"not a picture", b"", whole[: len(whole) // 2], whole[:20]):
        job = _asked(reader, image=reader.jobs.keep_upload(content))["job"]
        assert job["state"] == "failed"
        assert "not an image that can be read" in job["error"]
        assert "\n" not in job["error"]
    gone = _asked(reader, image="refused")["job"]
    assert "drop it again" in gone["error"]
    assert "there are 24" in _asked(reader, image="77")["job"]["error"]
    beside = _asked(reader, image="1", beside="refused")
    assert beside["picture"] is not None
    assert beside["job"]["state"] == "failed"


def test_heads_in_addresses() -> None:
    assert parse_heads("0.1,2.3,2.3,x,1.,.5,-1.2,1.2.3,99999.99999") == [(0, 1), (2, 3)]
    assert parse_heads(None) == []


@pytest.mark.parametrize(
    ("kind", "grid", "prefix", "classes"),
    [("pooled", (4, 4), 0, 3), ("registers", (4, 6), 5, 0), ("oblong", (3, 5), 1, 3)],
)
def test_vits_of_every_shape(
    kind: str, grid: tuple[int, int], prefix: int, classes: int, tmp_path: Path, vision_workspace: Workspace
) -> None:
    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    common |= {"patch_size": 4, "image_size": 16}
    if kind == "pooled":
        config: Any = transformers.IJepaConfig(**common, num_labels=3)
        model: Any = transformers.IJepaForImageClassification(config)
    elif kind == "registers":
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**common))
    else:
        config = transformers.ViTConfig(**(common | {"image_size": (12, 20)}), num_labels=3)
        model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path)
    size = {"height": 4 * grid[0], "width": 4 * grid[1]}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": size, "image_processor_type": "ViTImageProcessor"})
    )
    reader = WorkspaceReader(vision_workspace.path, {"tiny": str(tmp_path)})
    found = _asked(reader, model="tiny", image="1", row="2", column="3", prune="1.2,0.0")
    assert found["job"]["error"] == ""
    assert (tuple(found["picture"]["grid"]), found["picture"]["n_prefix"]) == (grid, prefix)
    assert np.array(found["picture"]["maps"]).shape == (2, 4, *grid)
    assert [t["name"] for t in found["picture"]["top"]] == [f"class {t['class']}" for t in found["picture"]["top"]]
    assert len(found["picture"]["top"]) == classes
    assert found["effect"]["cls_distance"] >= 0
    assert ("js" in found["effect"]) == bool(classes)


def test_what_is_no_vision_model_is_said(reader: WorkspaceReader) -> None:
    for name in ("gpt2-mini", "/etc", "no/such"):
        found = image.data(reader, {"model": name})
        assert found["model"] is None
        drawn = json.dumps(image.view(found, theme("light")), default=lambda component: component.to_plotly_json())
        assert "no vision model" in drawn


def test_image_features_have_pictures(reader: WorkspaceReader, vision_workspace: Workspace) -> None:
    run = vision_workspace.latest("features")
    assert run is not None
    examples = vision_workspace.read_table(run, "examples").to_pandas()
    number = int(examples.feature.iloc[0])
    found = clean(feature.data(reader, {"id": str(number)}))
    assert found["grid"] == [8, 8]
    assert set(found["pictures"]) == {str(s) for s in examples[examples.feature == number].sequence}
    drawn = json.dumps(feature.view(found, theme("light")), default=lambda component: component.to_plotly_json())
    assert drawn.count("data:image/png") == int((examples.feature == number).sum())

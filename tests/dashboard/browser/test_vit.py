"""A person looks at heads and pictures: clicks, boxes, uploads and pruning, compared with passes done by hand."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import torch
from PIL import Image

from attlas.analyses.vit.one_image import image_attention
from attlas.dashboard.components import short
from attlas.data.images.dataset import load_images
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel

from ..chromium import CHROMIUM, cut_tables, settled

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def address(vision_workspace: Workspace) -> Iterator[str]:
    from werkzeug.serving import make_server

    from attlas.dashboard.app import create_app

    server = make_server("127.0.0.1", 0, create_app(vision_workspace.path).server, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()


@pytest.fixture
def page(browser: object) -> Iterator[object]:
    tab = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light").new_page()  # type: ignore[attr-defined]
    tab.set_default_timeout(90_000)
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda m: tab.problems.append(m.text) if m.type == "error" else None)
    yield tab
    assert tab.problems == []
    tab.context.close()


def _params(url: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlparse(url).query).items()}


def _on_axes(page, label: str, x: float, y: float) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Where a point of a figure's axes lies in the window."""
    figure = page.get_by_role("img", name=label)
    figure.scroll_into_view_if_needed()
    found = figure.evaluate(
        """(frame, [x, y]) => {
            const plot = frame.querySelector('.js-plotly-plot'), box = plot.getBoundingClientRect();
            const {xaxis, yaxis} = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.l2p(x), box.top + yaxis._offset + yaxis.l2p(y)];
        }""",
        [x, y],
    )
    return float(found[0]), float(found[1])


def test_a_patch_is_clicked_and_heads_are_pruned(page, address: str, vit_mini: HookedModel) -> None:  # type: ignore[no-untyped-def]
    samples = load_images("embedded:glyphs", vit_mini.image_spec, n_images=24, seed=0)
    page.goto(f"{address}/image?image=2")
    page.locator(".sheet").wait_for()
    page.locator(".sheet .map", has_text="0.1").click()
    page.wait_for_url("**head=1**")
    label = re.compile("attention of head 0.1 from CLS")
    page.get_by_role("img", name=label).locator(".js-plotly-plot").wait_for()
    page.mouse.click(*_on_axes(page, label, 5, 2))  # type: ignore[arg-type]
    page.wait_for_url("**row=2**")
    assert _params(page.url)["column"] == "5"
    page.get_by_role("heading", name="Head 0.1, from patch (2, 5)").wait_for()
    values = image_attention(vit_mini, samples.pixels[2]).maps(2 * 8 + 5)[0, 1]
    told = page.get_by_text("of this query's attention").inner_text()
    assert short(round(float(values.sum()), 3)) in told
    shown = page.evaluate("document.querySelector('.js-plotly-plot').data[0].z")
    np.testing.assert_allclose(np.array(shown, dtype=float), values, atol=2e-5)

    page.get_by_role("link", name="Prune head 0.1").click()
    page.locator("#effect").wait_for()
    with torch.no_grad():
        before = vit_mini(samples.pixels[2:3]).softmax(-1)[0]

        def without(z: torch.Tensor, name: str) -> torch.Tensor:
            z = z.clone()
            z[:, :, 1] = 0
            return z

        with vit_mini.hooks({"blocks.0.attn.hook_z": without}):
            after = vit_mini(samples.pixels[2:3]).softmax(-1)[0]
    top = int(before.argmax())
    first = page.locator("table", has_text="before").locator("tbody tr")
    names = {row.locator("td").first.inner_text(): row for row in first.all()}
    row = names[vit_mini.hf.config.id2label[top]]
    assert float(row.locator("td").nth(1).inner_text()) == pytest.approx(float(before[top]), rel=0.01)
    assert float(row.locator("td").nth(2).inner_text()) == pytest.approx(float(after[top]), rel=0.01)
    page.get_by_role("link", name="Put head 0.1 back").click()
    page.wait_for_url(lambda url: "prune" not in url)
    page.locator("#effect").wait_for(state="detached")


def test_a_picture_is_dropped_and_compared(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/image")
    page.locator(".sheet").wait_for()
    settled(page)
    buffer = io.BytesIO()
    Image.effect_noise((300, 90), 80).convert("RGBA").save(buffer, "PNG")
    picture = {"name": "mine.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page.locator("input[type=file]").first.set_input_files(picture)
    page.wait_for_url("**image=**")
    page.get_by_text("your picture", exact=True).first.wait_for()
    page.locator(".sheet").wait_for()
    settled(page)
    page.get_by_role("textbox", name="Beside it").click()
    page.get_by_role("option", name="3 ", exact=False).first.click()
    page.wait_for_url("**beside=3**")
    page.get_by_role("img", name=re.compile("over the other")).wait_for()
    saved = page.get_by_role("link", name="Sheet as PNG")
    with page.expect_download() as download:
        saved.click()
    with Image.open(download.value.path()) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 6 * 72
    settled(page)
    broken = {"name": "mine.png", "mimeType": "image/png", "buffer": b"no picture at all"}
    page.locator("input[type=file]").first.set_input_files(broken)
    page.locator(".job.failed").wait_for()
    assert "not an image that can be read" in page.locator(".job.failed").inner_text()


def test_a_box_lights_heads_up_everywhere(page, address: str, vision_workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    run = vision_workspace.latest("vit")
    assert run is not None
    strength = vision_workspace.read_table(run, "strength").to_pandas()
    page.goto(f"{address}/vit")
    label = "profile of mean_distance_px over layers"
    page.get_by_role("img", name=label).locator(".js-plotly-plot .scatterlayer").wait_for()
    low, high = strength.mean_distance_px.min() - 0.2, strength.mean_distance_px.max() + 0.2
    start, end = _on_axes(page, label, 1.6, float(low)), _on_axes(page, label, 2.4, float(high))
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
    page.mouse.move(*end, steps=4)
    page.mouse.up()
    page.wait_for_url("**heads=**")
    lit = set(_params(page.url)["heads"].split(","))
    assert lit == {f"2.{h}" for h in range(6)}
    page.locator("#lit").wait_for()
    shapes = page.get_by_role("img", name="heatmap of value by layer and head").evaluate(
        """frame => frame.querySelector('.js-plotly-plot').layout.shapes.map(
            s => [Math.round((s.y0 + s.y1) / 2), Math.round((s.x0 + s.x1) / 2)])"""
    )
    assert {f"{a}.{b}" for a, b in shapes} >= lit
    bright = page.get_by_role("img", name="map of attention patterns").evaluate(
        """frame => frame.querySelector('.js-plotly-plot').data.filter(t => t.customdata).flatMap(
            t => t.customdata.filter((c, i) => t.marker.opacity[i] > 0.5).map(c => c.heads))"""
    )
    assert set(bright) == lit
    page.get_by_role("link", name="All heads", exact=True).click()
    page.wait_for_url(lambda url: "heads=" not in url)


def test_a_point_shows_its_map_and_a_click_keeps_it(page, address: str, vision_workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    run = vision_workspace.latest("vit_patterns")
    assert run is not None
    patterns = vision_workspace.read_table(run, "patterns").to_pandas()
    far = patterns.iloc[int((patterns.x**2 + patterns.y**2).argmax())]  # an outlying point, with none on top of it
    page.goto(f"{address}/vit")
    label = "map of attention patterns"
    page.get_by_role("img", name=label).locator(".js-plotly-plot .scatterlayer").wait_for()
    settled(page)
    at = _on_axes(page, label, float(far.x), float(far.y))
    page.mouse.move(at[0] - 30, at[1] - 30)
    page.mouse.move(*at, steps=5)
    picture = page.locator(".hover-picture img")
    picture.wait_for(state="visible")
    page.wait_for_timeout(500)  # the picture of a point passed on the way is replaced
    shown = int(re.findall(r"/(\d+)\.png", picture.get_attribute("src"))[0])
    assert np.hypot(patterns.x[shown] - far.x, patterns.y[shown] - far.y) < 0.1
    page.wait_for_function("document.querySelector('.hover-picture img').naturalWidth > 0")
    page.mouse.click(*at)
    page.wait_for_url("**map=**")
    params = _params(page.url)
    mine = patterns.iloc[int(params["map"])]
    assert (params["layer"], params["head"]) == (str(int(mine.layer)), str(int(mine["head"])))
    page.locator("#chosen-map img").wait_for()


def test_a_head_is_chosen_in_the_heatmap(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/vit")
    label = "heatmap of value by layer and head"
    page.get_by_role("img", name=label).locator(".js-plotly-plot .heatmaplayer").wait_for()
    page.mouse.click(*_on_axes(page, label, 4, 2))
    page.wait_for_url("**layer=2**")
    page.get_by_role("link", name="Head 2.4 on its own page").click()
    page.get_by_role("heading", name="Head 2.4 of vit-mini").wait_for()
    page.get_by_role("link", name="after →").click()
    page.get_by_role("heading", name="Head 2.5 of vit-mini").wait_for()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", ["/vit?cluster=1&map=5", "/vit-head?layer=1&head=2", "/image?beside=1&prune=0.1"])
def test_vision_pages_fit_and_take_both_themes(page, address: str, path: str, width: int) -> None:  # type: ignore[no-untyped-def]
    page.set_viewport_size({"width": width, "height": 850})
    page.goto(address + path)
    page.locator("main .card").nth(2).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert width < 1280 or cut_tables(page) == []
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#toggle").click()
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor !== '{before}'")

"""From the heads' map to one head, and its attention drawn live, in a real browser; compared with eager attention."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from attlas.data.workspace import Workspace
from attlas.interp import HookedModel

from ..chromium import ARGS, CHROMIUM

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
GRAPH = "document.querySelector('[aria-label^=\"attention map\"] .js-plotly-plot')"
DRAWN = f"{GRAPH}.data[0]"


def test_a_head_is_opened_and_its_map_drawn(workspace: Workspace, gpt2_mini: HookedModel) -> None:
    from playwright.sync_api import sync_playwright
    from werkzeug.serving import make_server

    from attlas.dashboard.app import create_app

    server = make_server("127.0.0.1", 0, create_app(workspace.path).server, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    text = "the old dog saw the old"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/layers?model=gpt2-mini&metric=label_score")
        box = page.locator(".clickable .nsewdrag").first.bounding_box()
        assert box is not None
        # layer 3 of 4, head 4 of 6
        page.mouse.click(box["x"] + box["width"] * 4.5 / 6, box["y"] + box["height"] * 3.5 / 4)
        page.get_by_role("heading", name="Head 3.4", exact=True).wait_for()
        assert "layer=3" in page.url
        assert "head=4" in page.url
        page.get_by_label("Your text").fill(text)
        page.get_by_label("Your text").press("Control+Enter")
        page.wait_for_url("**text=the**")
        tokens = gpt2_mini.to_tokens(text)
        words = gpt2_mini.to_str_tokens(tokens)
        page.wait_for_function(f"{GRAPH} && {DRAWN}.x.length === {len(words)}")
        shown = page.evaluate(f"({{z: {DRAWN}.z, x: {DRAWN}.x}})")
        eager = type(gpt2_mini.hf)(gpt2_mini.hf.config)
        eager.load_state_dict(gpt2_mini.hf.state_dict())
        eager.set_attn_implementation("eager")
        with torch.no_grad():
            expected = eager.eval()(tokens, output_attentions=True).attentions[3][0, 4].numpy()
        found = np.array([[np.nan if w is None else w for w in row] for row in shown["z"]])
        seen = np.tril(np.ones_like(expected, dtype=bool))
        np.testing.assert_allclose(found[seen], expected[seen], atol=1e-4)
        assert np.isnan(found[~seen]).all()
        assert [name.split(": ", 1)[1] for name in shown["x"]] == words
        # the square map stands in the middle of its area: row 4 attends to column 1
        n, axes = len(words), f"{GRAPH}._fullLayout"
        left, width, top, height = page.evaluate(
            f"['xaxis', 'yaxis'].flatMap((a) => [{axes}[a]._offset, {axes}[a]._length])"
        )
        frame = page.locator('[aria-label^="attention map"] .js-plotly-plot').bounding_box()
        assert frame is not None
        x, y = frame["x"] + left + width * 1.5 / n, frame["y"] + top + height * 4.5 / n
        page.mouse.move(x, y)
        hover = page.locator('[aria-label^="attention map"] .hoverlayer .hovertext').first
        hover.wait_for()
        told = hover.text_content() or ""
        assert f"from 4: {words[4]}" in told
        assert f"to 1: {words[1]}" in told
        page.mouse.click(x, y)
        page.wait_for_url("**to=4**")
        page.get_by_text("Token 4,").wait_for()
        assert problems == []
        browser.close()
    server.shutdown()

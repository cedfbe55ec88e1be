"""A person moves the slider of the prune page and has it measured; the number is what the masked model costs."""

from __future__ import annotations

import threading

import pytest

from attlas.analyses.common.losses import quality
from attlas.dashboard.components import short
from attlas.dashboard.pages.prune.page import parse_units, sample
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.interp.drop import masked

from ..chromium import ARGS, CHROMIUM, cut_tables

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def test_the_slider_moves_and_measures(workspace: Workspace, gpt2_mini: HookedModel) -> None:
    from playwright.sync_api import sync_playwright
    from werkzeug.serving import make_server

    from attlas.dashboard.app import create_app

    server = make_server("127.0.0.1", 0, create_app(workspace.path).server, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/prune?model=gpt2-mini")
        page.get_by_role("heading", name="Beside random sets").wait_for()
        assert cut_tables(page) == []
        handle = page.get_by_role("slider").first
        handle.focus()
        handle.press("ArrowRight")
        page.wait_for_url("**n=2**")
        page.get_by_text("How many: 2 of 3").wait_for()
        page.get_by_role("link", name="Measure it").click()
        page.wait_for_url("**measure=1**")
        page.get_by_text("All three on the same").wait_for()
        units = page.locator(".dropped").inner_text().split(", ")
        assert len(units) == 2
        data = sample(gpt2_mini)
        whole = quality(gpt2_mini, data)[0]
        with masked(gpt2_mini, parse_units(units)):
            expected = quality(gpt2_mini, data)[0] - whole
        shown = page.locator(".what-if .metric", has_text="Measured here").locator(".metric-value").inner_text()
        assert shown == short(expected)
        assert problems == []
        browser.close()
    server.shutdown()

"""A person's way through the atlas, in a real browser, compared with the workspace's tables."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attlas.data.notes import NoteBook
from attlas.data.workspace import Workspace

from ..chromium import CHROMIUM, settled

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def address(workspace: Workspace) -> Iterator[str]:
    from werkzeug.serving import make_server

    from attlas.dashboard.app import create_app

    server = make_server("127.0.0.1", 0, create_app(workspace.path).server, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()


@pytest.fixture
def page(browser: object) -> Iterator[object]:
    tab = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light").new_page()  # type: ignore[attr-defined]
    tab.set_default_timeout(30_000)
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda m: tab.problems.append(m.text) if m.type in ("error", "warning") else None)
    yield tab
    assert tab.problems == []
    tab.context.close()


def test_from_overview_to_a_feature(page, address: str, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    run = workspace.latest("features")
    assert run is not None
    features = workspace.read_table(run, "features").to_pandas()
    examples = workspace.read_table(run, "examples").to_pandas()
    logits = workspace.read_table(run, "logits").to_pandas()
    page.goto(address)
    page.get_by_role("navigation").get_by_role("link", name="Features", exact=True).click()
    strongest = features.sort_values(["max_act", "feature"], ascending=[False, True]).iloc[0]
    first = page.locator(".feature-link").first
    first.wait_for()
    assert first.inner_text() == str(int(strongest.feature))
    first.click()
    feature = int(strongest.feature)
    page.get_by_role("heading", name=f"Feature {feature}", exact=True).wait_for()
    assert f"id={feature}" in page.url
    mine = examples[(examples.feature == feature) & (examples.stratum == "top")].sort_values("rank").iloc[0]
    shown = page.locator(".example").first
    assert shown.locator(".example-head b").inner_text() == f"{mine.activation:.3g}"
    text = "".join(mine.tokens).replace("\n", "↵")
    assert "".join(shown.locator(".tokens").inner_text().split()) == "".join(text.split())
    peak = shown.locator(".token.peak").inner_text()
    assert peak.strip() == mine.tokens[mine.position - mine.context_start].strip()
    promoted = logits[(logits.feature == feature) & (logits.sign == "promoted")].sort_values("rank")
    codes = page.locator(".logits > div").first.locator("code").all_inner_texts()
    assert [c.replace("·", "").strip() for c in codes] == [t.replace("\n", "↵").strip() for t in promoted.token]


def test_filters_live_in_the_url(page, address: str, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    run = workspace.latest("features")
    assert run is not None
    features = workspace.read_table(run, "features").to_pandas()
    wanted = int(features.feature.iloc[5])
    page.goto(f"{address}/features")
    page.get_by_label("Words, or #feature").fill(f"#{wanted}")
    page.wait_for_url(f"**/features?*q=%23{wanted}*")
    page.wait_for_function("document.querySelectorAll('.feature-link').length === 1")
    assert page.locator(".feature-link").first.inner_text() == str(wanted)
    page.reload()
    page.wait_for_function("document.querySelectorAll('.feature-link').length === 1")
    page.go_back()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", ["/", "/features", "/feature?id=1", "/layers", "/vit", "/training", "/evaluation"])
def test_pages_fit_and_take_both_themes(page, address: str, path: str, width: int) -> None:  # type: ignore[no-untyped-def]
    page.set_viewport_size({"width": width, "height": 850})
    page.goto(address + path)
    page.locator("main h1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#toggle").click()
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor !== '{before}'")
    assert page.locator("main h1").count() == 1


def test_a_metric_is_picked(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/layers?model=gpt2-mini")
    page.locator("main h1").wait_for()
    page.get_by_role("textbox", name="Metric").click()
    page.get_by_role("option", name="Sink mass").click()
    page.wait_for_url("**metric=sink_mass**")
    page.get_by_role("heading", name="Sink mass").wait_for()


def test_a_grid_tells_whole_numbers_whole(page, address: str, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    run = workspace.latest("sae_eval")
    assert run is not None
    n_tokens = int(workspace.read_table(run, "evaluation").to_pandas().n_tokens.iloc[0])
    page.goto(f"{address}/evaluation")
    cell = page.locator('.ag-cell[col-id="n_tokens"]').first
    cell.wait_for(state="attached")
    assert n_tokens > 1000
    assert cell.text_content() == f"{n_tokens:,}"


def test_what_is_typed_slowly_stays_where_it_is_typed(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/features")
    page.locator(".feature-link").first.wait_for()
    box = page.get_by_label("Words, or #feature")
    box.click()
    page.evaluate("window.scrollTo(0, 120); document.querySelector('main h1').dataset.mark = 'old'")
    for letter in "captain":  # slower than the box waits: each letter is a URL and a drawing of its own
        page.keyboard.type(letter)
        page.wait_for_timeout(450)
    page.wait_for_url("**q=captain*")
    settled(page)
    assert box.input_value() == "captain"
    assert page.evaluate("document.activeElement.value") == "captain"
    assert page.evaluate("window.scrollY") == 120
    assert page.locator("h1[data-mark=old]").count() == 1  # the page is the one it was
    assert page.title() == "Features · Attlas"


def test_arrow_keys_move_a_slider_as_often_as_they_are_pressed(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/prune?model=gpt2-mini&n=0")
    handle = page.locator("[role=slider]").first
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(250)
    page.wait_for_url("**n=3*")
    settled(page)
    assert handle.get_attribute("aria-valuenow") == "3"
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"


def test_keys_go_along_the_features_faster_than_pages_are_drawn(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/feature?id=20")
    page.get_by_role("heading", name="Feature 20", exact=True).wait_for()
    for _ in range(5):
        page.keyboard.press("]")
    page.keyboard.press("[")
    page.get_by_role("heading", name="Feature 24", exact=True).wait_for()
    assert "id=24" in page.url


def test_a_server_that_is_away_is_said_to_be(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/features")
    page.locator(".feature-link").first.wait_for()
    page.route("**/_dash-update-component*", lambda route: route.abort())
    page.route("**/alive", lambda route: route.abort())
    page.get_by_role("navigation").get_by_role("link", name="Layers", exact=True).click()
    banner = page.locator("#lost")
    banner.wait_for()
    assert "does not answer" in banner.inner_text()
    page.unroute("**/_dash-update-component*")
    page.unroute("**/alive")
    banner.wait_for(state="hidden")
    page.get_by_role("heading", name=re.compile("^Layers")).wait_for()  # drawn without a click
    page.problems.clear()  # the browser notes the failed requests


def test_a_run_that_is_gone_is_not_another(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/features?run=features-gone-00000000")
    page.get_by_role("heading", name="This run is not here").wait_for()
    page.get_by_role("link", name="Features without it").click()
    page.locator(".feature-link").first.wait_for()


def test_the_palette_goes_to_a_head(page, address: str) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/features?model=gpt2-mini")
    page.locator(".feature-link").first.wait_for()
    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Go to").fill("L3H0")
    page.get_by_role("option", name="Head 3.0").first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url("**/head?layer=3&head=0&model=gpt2-mini")
    page.locator("main h1").wait_for()


def test_a_note_is_kept_as_it_is_typed(page, address: str, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    page.goto(f"{address}/feature?id=3")
    label = page.get_by_label("Label")
    label.click()
    page.keyboard.type("commas in lists", delay=40)
    page.get_by_text("Written 20").wait_for()
    assert label.input_value() == "commas in lists"
    assert page.evaluate("document.activeElement.value") == "commas in lists"
    page.get_by_role("button", name="Star").click()
    page.get_by_text("2 changes are kept").wait_for()
    (note,) = NoteBook(workspace.path).all("feature")
    assert (note.label, note.star) == ("commas in lists", True)
    page.goto(f"{address}/features?q=commas+in+lists")
    page.locator('.ag-cell[col-id="note"]').filter(has_text="★ commas in lists").wait_for()
    assert page.locator(".feature-link").all_inner_texts() == ["3"]
    page.goto(f"{address}/feature?id=3")
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Nothing written yet").wait_for()


READ = (
    "/",
    "/features",
    "/feature?id=5",
    "/layers",
    "/heads",
    "/head?model=gpt2-mini&layer=3&head=0",
    "/prune",
    "/evaluation",
    "/runs",
    "/compare",
)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, address: str, mode: str) -> None:
    """Every second page in each theme; all of them with ATTLAS_AXE_ALL=1."""
    found = pytest.importorskip("axe_playwright_python")
    script = (Path(found.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    # So high that all is in view: ag-grid hides the headings of a grid that is not.
    tab = browser.new_context(viewport={"width": 1280, "height": 5000}, color_scheme=mode, bypass_csp=True).new_page()
    tab.set_default_timeout(60_000)
    paths = READ if os.environ.get("ATTLAS_AXE_ALL") else READ[mode == "dark" :: 2]
    for path in paths:
        tab.goto(f"{address}{path}")
        tab.locator("main h1").wait_for()
        settled(tab)
        tab.wait_for_function(
            "[...document.querySelectorAll('.grid-box')].every((g) => g.querySelector('.ag-header-cell') || !g.offsetHeight)"
            " && !document.querySelector('._dash-loading-callback, [data-gallery]:not(:has(.sequence))')"
        )
        tab.evaluate(f"{script};0")
        # A grid in a folded table has no columns until it is unfolded, and nobody is told of it.
        looked_at = "{include: [['html']], exclude: [['details:not([open]) .grid-box']]}"
        told = tab.evaluate(f"axe.run({looked_at}, {{resultTypes: ['violations'], preload: false}})")
        serious = [
            (path, v["id"], v["nodes"][0]["html"][:160], len(v["nodes"]))
            for v in told["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert serious == []
    tab.context.close()

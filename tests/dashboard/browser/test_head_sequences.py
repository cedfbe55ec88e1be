"""Sequences of a head in a real browser: what lights up is what the table holds; and from the finder to a head."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attlas.cli import main
from attlas.data.workspace import Workspace

from ..chromium import CHROMIUM

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def address(workspace: Workspace) -> Iterator[str]:
    from werkzeug.serving import make_server

    from attlas.dashboard.app import create_app

    server = make_server("127.0.0.1", 0, create_app(workspace.path).server, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()


def test_a_token_shows_its_keys_and_who_looks_at_it(browser: Any, address: str, workspace: Workspace) -> None:
    run = next(run for run in workspace.runs("heads") if run.model.name == "gpt2-mini")
    table = workspace.read_table(run, "head_sequences").to_pandas()
    mine = table[(table.layer == 3) & (table["head"] == 0) & (table.by == "weight")]
    row = mine.sort_values(["interval", "rank"], ascending=[False, True]).iloc[0]
    query, key = np.array(row.query), np.array(row.key)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{address}/head-sequences?run={run.id}&layer=3&head=0")
    page.wait_for_selector("[data-ready] .sequence .cell")
    first = page.locator(".sequence").first
    at = 20
    token = first.locator(f"[data-i='{at}']")
    token.hover()

    def lit(kind: str) -> set[int]:
        found = first.locator(f".cell{kind}").evaluate_all("(all) => all.map((e) => Number(e.dataset.i))")
        return set(found)

    keys, lookers = set(key[query == at].tolist()), set(query[key == at].tolist()) - {at}
    assert lit(".query") == {at}
    assert lit(".to") == keys
    assert lit(".by") | lit(".both") == lookers
    token.click()
    page.mouse.move(5, 5)
    assert lit(".query") == {at}
    there = {int(k): float(w) for q, k, w in zip(query, key, row.weight, strict=True) if q == at and k != at}
    best = max(there, key=there.__getitem__)
    why = first.locator(".says a")
    assert why.inner_text().endswith("in pairs of features")
    told = page.request.get(f"{address}/api{why.get_attribute('href')}&wait=60").json()["score"]
    assert (told["dest"], told["src"]) == (at, best)
    assert abs(told["attention"] - there[best]) < 1e-3
    first.locator(".says button").click()
    first.locator(".says .pairs li").first.wait_for()
    pairs = [pair for pair in told["pairs"] if pair["dest"] != "remainder"][:8]
    listed = first.locator(".says .pairs li").all_inner_texts()
    assert len(listed) == len(pairs) + 1
    for pair, text in zip(pairs, listed, strict=False):
        assert text.startswith(f"{pair['dest']} × {pair['src']}")
        assert abs(float(text.rsplit(" ", 1)[1]) - pair["score"]) <= 0.005 * abs(pair["score"]) + 1e-6
    assert float(listed[-1].removeprefix("all ")) == pytest.approx(told["score"], rel=5e-3)
    first.press("ArrowRight")
    assert lit(".query") == {at + 1}
    assert lit(".to") == set(key[query == at + 1].tolist())
    first.press("Escape")
    assert lit(".query") != {at + 1}
    took = page.evaluate(
        """() => { const cells = [...document.querySelectorAll(".sequence .cell")].slice(0, 100), begun = performance.now();
        for (const cell of cells) { cell.dispatchEvent(new PointerEvent("pointerover", { bubbles: true })); cell.offsetTop; }
        return (performance.now() - begun) / cells.length; }"""
    )
    assert took < 50  # ms a hover, layout included
    assert problems == []
    page.close()


def test_sequences_are_there_before_the_page_and_stay(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.route("**/_dash-update-component*", lambda _route: None)  # held
    page.goto(f"{address}/head?model=gpt2-mini&layer=3&head=0")
    page.locator("#preview .sequence .cell").nth(9).click()
    assert page.locator("#preview .sequence.locked").count() == 1
    page.wait_for_timeout(300)
    page.unroute("**/_dash-update-component*")  # lets what was held go on
    page.locator("#page .sequence.locked").wait_for()
    assert page.locator("#preview").count() == 0
    assert page.locator("#page .sequence.locked .query").get_attribute("data-i") == "9"
    page.locator("#page .sequence").nth(2).wait_for()  # all three, though not all had come
    page.close()


def test_from_the_finder_to_a_head_and_images(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(f"{address}/heads?model=gpt2-mini&metric=prev_token_score&compare=3.0,2.0")
    page.get_by_role("heading", name="3.0 beside 2.0").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".tags a.tag").first.click()
    page.get_by_role("heading", name="What its attention is spent on").wait_for()
    assert "layer=2" in page.url  # head 0 is the default
    page.get_by_role("heading", name="Head 2.0").wait_for()
    page.goto(f"{address}/head?model=vit-mini&layer=1&head=2")
    cells = page.locator(".sequence .grid .cell")
    cells.first.wait_for()
    cells.nth(9).click()
    assert page.locator(".sequence.locked .grid .query").count() == 1
    assert page.locator(".sequence.locked .to").count() > 0
    page.close()


def test_one_file_needs_no_server(browser: Any, workspace: Workspace, tmp_path: Path) -> None:
    run = next(run for run in workspace.runs("heads") if run.model.name == "gpt2-mini")
    file = tmp_path / "heads.html"
    assert main(["export", "html", "heads", "--run", run.id, "--out", str(file), "-w", str(workspace.path)]) == 0
    page = browser.new_page(viewport={"width": 390, "height": 1000})
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    assert page.locator(".point").count() == 24
    page.locator(".point[data-head='3.0']").click()
    page.get_by_role("heading", name="Head 3.0").wait_for()
    first = page.locator(".sequence").first
    first.locator("[data-i='20']").hover()
    table = workspace.read_table(run, "head_sequences").to_pandas()
    mine = table[(table.layer == 3) & (table["head"] == 0) & (table.by == "weight")]
    row = mine.sort_values(["interval", "rank"], ascending=[False, True]).iloc[0]
    lit = first.locator(".cell.to").evaluate_all("(all) => all.map((e) => Number(e.dataset.i))")
    assert set(lit) == set(np.array(row.key)[np.array(row.query) == 20].tolist())
    assert page.locator("tr", has_text="previous token").first.is_visible()
    page.get_by_label("Across").select_option("sink_mass")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert problems == []
    page.close()
    assert main(["export", "html", "heads", "--head", "9.9", "--out", str(file), "-w", str(workspace.path)]) == 2

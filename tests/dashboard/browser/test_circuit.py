"""Following a circuit in a real browser: each step compared with the analysis called directly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from attlas.analyses.circuits.ablation import ablate
from attlas.analyses.circuits.frozen import FrozenPass, Part
from attlas.analyses.circuits.nodes import Node
from attlas.analyses.circuits.qk import QKConfig, qk_attribution
from attlas.analyses.circuits.terms import FeatureTarget, LogitTarget, direct_attribution
from attlas.analyses.circuits.tracing import TraceConfig, trace
from attlas.cli import main
from attlas.dashboard.components import short
from attlas.data.workspace import Workspace
from attlas.interp import HookedModel
from attlas.saes import load_sae

from ..chromium import CHROMIUM

TEXT = " the white whale, and the white"
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def address(circuit_workspace: Workspace) -> Iterator[str]:
    from werkzeug.serving import make_server

    from attlas.dashboard.app import create_app

    server = make_server("127.0.0.1", 0, create_app(circuit_workspace.path).server, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    tab = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light").new_page()
    tab.set_default_timeout(60_000)
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else problems.append(r.url))
    yield tab
    assert problems == []
    tab.context.close()


@pytest.fixture(scope="module")
def frozen(circuit_workspace: Workspace, gpt2_mini: HookedModel) -> FrozenPass:
    saes = [load_sae(str(circuit_workspace.folder(run))) for run in circuit_workspace.runs("sae")]
    return FrozenPass(gpt2_mini, gpt2_mini.to_tokens(TEXT), {sae.cfg.hook_name: sae for sae in saes})


def _param(page: Any, name: str) -> str:
    return parse_qs(urlparse(page.url).query)[name][-1]


def _metric(page: Any, label: str) -> str:
    return page.locator(".metric", has=page.get_by_text(label, exact=True)).locator(".metric-value").inner_text()  # type: ignore[no-any-return]


def _upstream(model: HookedModel, frozen: FrozenPass, feature: int, position: int) -> Node | None:
    """The largest feature that a feature of layer 3 was made from, among its 15 largest parts."""
    config = TraceConfig(threshold=0, top_n=15, depth=1)
    graph = trace(model, frozen.tokens, FeatureTarget(3, feature, position), config, frozen=frozen)
    return next((n for n in (graph.node(e.source) for e in graph.into(graph.target)) if n.kind == "feature"), None)


def test_from_a_prompt_to_an_upstream_feature_and_an_ablation(
    page: Any, address: str, frozen: FrozenPass, gpt2_mini: HookedModel
) -> None:
    page.goto(f"{address}/circuit")
    page.locator(".token-links").wait_for()
    box = page.get_by_role("textbox", name="Prompt")
    box.fill(TEXT)
    box.press("Control+Enter")
    last = frozen.n_positions - 1
    page.wait_for_function(f"document.querySelectorAll('.token-links a').length === {last + 1}")
    assert _param(page, "text") == TEXT
    first, second = frozen.logits[-1].topk(2).indices.tolist()
    target = LogitTarget((first,), (second,))
    difference = float(frozen.logits[-1, first] - frozen.logits[-1, second])
    assert page.locator(".difference").inner_text() == short(difference)

    # The strongest feature of layer 3 at the last token that was made from another feature.
    place, feature, amount, up = next(
        (i, f, a, found)
        for i, (f, a) in enumerate(frozen.strongest(3, 5)[last])
        if (found := _upstream(gpt2_mini, frozen, f, last)) is not None
    )
    chip = page.locator(".card .tags", has=page.get_by_text("Layer 3", exact=True)).get_by_role("link").nth(place)
    assert chip.inner_text() == f"{feature} {short(amount)}"
    chip.click()
    page.locator(".crumbs").wait_for()
    page.get_by_role("heading", name="What it was made from").wait_for()
    assert _metric(page, "Activation") == short(amount)
    assert _metric(page, "From attention") == short(float(direct_attribution(frozen, 3, feature, last).sum()))

    # Upstream, to the largest feature it was made from.
    link = page.locator("a.upstream").first
    assert link.inner_text() == f"feature {up.layer}/{up.feature}@{up.position}"
    link.click()
    page.wait_for_function("document.querySelectorAll('.crumbs a').length === 2")
    assert _param(page, "trail") == f"3/{feature}@{last}>{up.layer}/{up.feature}@{up.position}"
    page.get_by_role("heading", name="What it was made from").wait_for()
    assert _metric(page, "Activation") == short(frozen.decomposed(up.layer, up.position)[0][up.feature].item())
    page.locator(".crumbs a").first.click()  # and back by the breadcrumb
    page.wait_for_function("document.querySelectorAll('.crumbs a').length === 1")

    page.get_by_role("link", name="Take it out").click()
    page.locator(".ablation .metric").first.wait_for()
    result = ablate(frozen, [Part("feature", 3, last, feature=feature)], target).summary()
    assert _metric(page, "Logit difference before") == short(result["before"])
    assert _metric(page, "Change") == short(result["change"])
    page.reload()
    page.locator(".ablation .metric").first.wait_for()
    assert _metric(page, "Change") == short(result["change"])
    page.get_by_role("link", name="put back").click()
    page.wait_for_function("!document.querySelector('.ablation')")


def test_an_entry_of_an_attention_pattern(page: Any, address: str, frozen: FrozenPass, gpt2_mini: HookedModel) -> None:
    page.goto(f"{address}/circuit?text={TEXT.replace(' ', '+')}&view=attention&layer=3&head=2")
    page.get_by_role("heading", name="Head 3.2").wait_for()
    page.locator(".clickable .main-svg").first.wait_for()
    page.locator(".clickable").scroll_into_view_if_needed()
    plot = page.locator(".clickable .nsewdrag").bounding_box()
    n = frozen.n_positions
    dest, src = n - 1, 1
    page.mouse.click(plot["x"] + plot["width"] * (src + 0.5) / n, plot["y"] + plot["height"] * (dest + 0.5) / n)
    page.wait_for_url("**src=1**")
    assert (_param(page, "dest"), _param(page, "src")) == (str(dest), str(src))
    direct = qk_attribution(gpt2_mini, frozen.tokens, QKConfig(3, 2, dest, src), frozen=frozen)
    page.get_by_role("heading", name=f"{dest} “").wait_for()
    page.wait_for_function(
        f"[...document.querySelectorAll('.metric-value')].some((e) => e.innerText === '{short(direct.score)}')"
    )
    assert _metric(page, "Score") == _metric(page, "Sum of all pairs") == short(direct.score)
    cells = page.locator(".card", has=page.get_by_text("term at the source")).locator("tbody tr").first.locator("td")
    left, right, value = direct.pairs(1)[0]
    assert cells.all_inner_texts() == [left.id, right.id, short(value)]


def test_nodes_are_looked_at_chosen_pinned_and_grouped(
    page: Any, address: str, frozen: FrozenPass, gpt2_mini: HookedModel, circuit_workspace: Workspace
) -> None:
    page.goto(f"{address}/circuit?text={TEXT.replace(' ', '+')}&view=graph&keys=no&threshold=0.05")
    page.locator(".circuit[data-ready]").wait_for()
    first, second = frozen.logits[-1].topk(2).indices.tolist()
    config = TraceConfig(threshold=0.05, top_n=10, max_nodes=120)
    graph = trace(gpt2_mini, frozen.tokens, LogitTarget((first,), (second,)), config, frozen=frozen)
    apart = [n for n in graph.nodes if n.kind not in ("constant", "remainder")]
    drawn = page.evaluate("[...document.querySelectorAll('.circuit .node')].map((n) => n.dataset.node)")
    assert sorted(drawn) == sorted([*(n.id for n in apart), "remainder"])

    # No label lies on another, and all can be read.
    boxes = page.evaluate(
        "[...document.querySelectorAll('.circuit .node text')].map((t) => t.getBoundingClientRect().toJSON())"
    )
    assert all(box["height"] >= 10 for box in boxes)
    overlap = [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a["left"] < b["right"] - 1
        and b["left"] < a["right"] - 1
        and a["top"] < b["bottom"] - 3
        and b["top"] < a["bottom"] - 3
    ]
    assert overlap == []

    mark = page.locator('.circuit [data-node="remainder"]')
    mark.hover()
    assert page.locator(".circuit-aside h3").inner_text() == "What was cut off"
    assert page.locator(".circuit svg.dim").count() == 1
    mark.click()
    page.wait_for_url("**node=remainder**")
    cut = [n for n in graph.nodes if n.kind == "remainder"]
    assert f"{sum(n.n_terms for n in cut)} terms" in page.locator(".circuit-facts").inner_text()

    # Followed upstream by the keyboard, from the target along its strongest edge.
    page.locator(f'.circuit [data-node="{graph.target}"]').focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    into = {
        "remainder" if e.source in {n.id for n in cut} else e.source: abs(e.weight) for e in graph.into(graph.target)
    }
    assert _param(page, "node") == max(into, key=lambda id: into[id])

    # Two nodes as one, kept in the workspace, at another threshold too.
    chosen = [n.id for n in apart if n.id != graph.target][:2]
    for id in chosen:
        page.locator(f'.circuit [data-node="{id}"]').click(modifiers=["Shift"])
    page.get_by_role("textbox", name="Name of the group").fill("both")
    page.keyboard.press("Enter")
    page.locator('.circuit [data-node="group both"]').wait_for()
    assert not any(page.locator(f'.circuit [data-node="{id}"]').count() for id in chosen)
    page.goto(f"{address}/circuit?text={TEXT.replace(' ', '+')}&view=graph&keys=no&threshold=0.02")
    page.locator('.circuit [data-node="group both"]').click()
    page.get_by_role("button", name="Ungroup").click()
    page.locator(f'.circuit [data-node="{chosen[0]}"]').wait_for()
    page.wait_for_timeout(300)
    page.reload()
    page.locator(".circuit[data-ready]").wait_for()
    assert page.locator('.circuit [data-node^="group"]').count() == 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("query", ["", "?view=attention", "?view=graph", "?view=saved"])
def test_views_fit_and_take_both_themes(page: Any, address: str, query: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 850})
    page.goto(f"{address}/circuit{query}")
    page.locator("main h1").wait_for()
    if "saved" not in query:
        page.locator(".difference").wait_for()
    page.wait_for_function("!document.querySelector('.job')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#toggle").click()
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor !== '{before}'")
    assert page.locator("main h1").count() == 1


def test_a_graph_in_one_file_is_walked_without_a_network(
    browser: Any, circuit_workspace: Workspace, tmp_path: Path
) -> None:
    file = tmp_path / "circuit.html"
    address = f"/circuit?text={TEXT.replace(' ', '+')}&view=graph&keys=no"
    assert main(["export", "html", address, "--to", str(file), "--workspace", str(circuit_workspace.path)]) == 0
    tab = browser.new_context(offline=True).new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: asked.append(str(error)))
    tab.goto(file.as_uri())
    tab.locator('.circuit [data-node="remainder"]').click()
    assert tab.locator(".circuit-aside h3").inner_text() == "What was cut off"
    assert [url for url in asked if not url.startswith("file:")] == []
    tab.context.close()

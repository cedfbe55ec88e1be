"""Work on models: one at a time, cancellable within a forward pass, limited in time, shown as JSON and in the browser."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dash import html
from PIL import Image
from plotly import graph_objects as go

from attlas.dashboard import app as dashboard_app
from attlas.dashboard.components import graph, heading, heatmap, job_panel, text_box, upload
from attlas.dashboard.jobs import WAITING, Job, JobQueue
from attlas.dashboard.page import Data, Page, Params
from attlas.dashboard.reader import WorkspaceReader
from attlas.dashboard.theme import Theme
from attlas.errors import ConfigError, ModelNotFoundError


def _until(job: Job, state: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while job.state != state and time.monotonic() < end:
        time.sleep(0.005)
    assert job.state == state, (job.state, job.error)


def _endless(job: Job) -> None:
    for _ in job(iter(int, 1), "counting"):
        time.sleep(0.002)


def test_a_key_is_worked_on_once() -> None:
    worker, calls = JobQueue(), []
    jobs = [worker.job(("sum", 3), "adding", lambda job: calls.append(1) or sum(range(4))) for _ in range(5)]
    assert len({id(job) for job in jobs}) == 1
    assert jobs[0].wait(10)
    assert (jobs[0].state, jobs[0].result, calls) == ("done", 6, [1])
    assert jobs[0].poll() is False
    worker.forget(jobs[0].key)
    assert worker.job(("sum", 3), "adding", lambda job: 7) is not jobs[0]


def test_work_waits_its_turn_and_a_queued_one_can_be_called_off() -> None:
    worker = JobQueue()
    first = worker.job("a", "first", _endless)
    _until(first, "running")
    second, third = worker.job("b", "second", lambda job: "b"), worker.job("c", "third", lambda job: "c")
    assert (second.state, third.state) == ("queued", "queued")
    worker.cancel(second.key)
    worker.cancel(first.key)
    _until(third, "done")
    assert (first.state, second.state, second.result) == ("cancelled", "cancelled", None)


def test_the_queue_has_an_end() -> None:
    worker = JobQueue()
    first = worker.job("first", "first", _endless)
    _until(first, "running")
    queued = [worker.job(i, "more", lambda job: None) for i in range(WAITING)]
    refused = worker.job("one too many", "more", lambda job: None)
    assert refused.state == "failed"
    assert f"{WAITING} pieces" in refused.error
    for job in (first, *queued):
        worker.cancel(job.key)
    _until(queued[-1], "cancelled")


def test_limits_and_failures_are_told() -> None:
    worker = JobQueue()
    late = worker.job("late", "too slow", _endless, seconds=0.05)
    _until(late, "late")

    def refused(job: Job) -> None:
        raise ConfigError("width 0 is no width")

    def broken(job: Job) -> None:
        raise ZeroDivisionError("by zero")

    failed, crashed = worker.job("f", "f", refused), worker.job("g", "g", broken)
    _until(crashed, "failed")
    assert (failed.state, failed.error) == ("failed", "width 0 is no width")
    assert crashed.error == "ZeroDivisionError: by zero"
    shown = str(job_panel(failed.describe()))
    assert "width 0 is no width" in shown
    assert "Run again" in shown


def test_cancelling_takes_effect_inside_a_forward_pass() -> None:
    worker, reached = JobQueue(), threading.Event()

    def work(job: Job) -> None:
        model = worker.model("gpt2-mini")
        assert worker.model("gpt2-mini") is model
        reached.set()
        while True:  # never calls check(): the layers do
            model(torch.zeros(1, 8, dtype=torch.int64))

    job = worker.job("forward", "forward passes", work)
    assert reached.wait(60)
    worker.cancel(job.key)
    _until(job, "cancelled")
    again = worker.job("once", "one pass", lambda job: worker.model("gpt2-mini")(torch.zeros(1, 8, dtype=torch.int64)))
    _until(again, "done")
    assert again.result.shape[:2] == (1, 8)


def test_models_by_folder(tiny_llama_dir: Path) -> None:
    worker = JobQueue({"mine": str(tiny_llama_dir)})
    assert worker.model("mine").cfg.n_kv_heads == 2
    with pytest.raises(ModelNotFoundError):
        worker.model("theirs")


def test_uploads_are_kept_in_memory() -> None:
    worker = JobQueue()
    name = worker.keep_upload(b"abc")
    assert worker.upload(name) == b"abc"
    for i in range(20):
        worker.keep_upload(str(i).encode())
    assert worker.upload(name) is None
    with pytest.raises(ConfigError, match="too large"):
        worker.keep_upload(bytes(65_000_000))


# A page with one of everything, so that the framework is tested apart from any real page.


def _data(reader: WorkspaceReader, params: Params) -> Data:
    slow = params.get("slow")
    job = reader.jobs.job(("demo", params.get("text"), slow), "a demonstration", _endless if slow else lambda job: 42)
    return {
        "job": job.describe(),
        "live": job.poll(),
        "result": job.result,
        "text": params.get("text", ""),
        "cell": [params.get("layer"), params.get("head")],
        "dot": params.get("dot"),
        "size": len(reader.jobs.upload(params.get("file", "")) or b""),
    }


def _view(data: Data, theme: Theme) -> html.Div:
    rows = [{"layer": i, "head": j, "v": i + j} for i in range(2) for j in range(3)]
    places = [{"dot": f"d{i}"} for i in range(3)]
    dots = go.Figure(go.Scatter(x=[0, 1, 2], y=[0, 1, 2], mode="markers", customdata=places, marker={"size": 30}))
    dots.update_layout(height=300, dragmode="select", margin={"l": 40, "r": 10, "t": 10, "b": 40})
    return html.Div(
        [
            heading("Trial"),
            text_box("text", "Text", data["text"]),
            job_panel(data["job"]),
            html.P(f"result {data['result']}", id="result"),
            heatmap(rows, "v", theme, pick=True),
            graph(dots, "dots", pick="*", brush="dot"),
            html.P(f"cell {data['cell']}, dots {data['dot']}"),
            upload("file", "Drop a file"),
            html.P(f"{data['size']} bytes", id="size"),
        ]
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from werkzeug.serving import make_server

    with pytest.MonkeyPatch.context() as patch:
        real = dashboard_app.all_pages()
        patch.setattr(dashboard_app, "all_pages", lambda: (*real, Page("/trial", "Trial", _data, _view)))
        app = dashboard_app.create_app(tmp_path_factory.mktemp("live") / "workspace")
    server = make_server("127.0.0.1", 0, app.server, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()


def test_json_waits_for_the_work(address: str) -> None:
    import json
    import urllib.request

    with urllib.request.urlopen(f"{address}/api/trial?text=json&wait=20") as answer:
        found = json.load(answer)
    assert (found["job"]["state"], found["result"], found["live"]) == ("done", 42, False)


def test_other_host_names_are_refused(tmp_path: Path) -> None:
    client = dashboard_app.create_app(tmp_path / "w").server.test_client()
    assert client.get("/api", headers={"Host": "evil.example:8050"}).status_code == 403
    assert client.get("/api", headers={"Host": "localhost:8050"}).status_code == 200
    open_app = dashboard_app.create_app(tmp_path / "w", host="0.0.0.0").server.test_client()
    assert open_app.get("/api", headers={"Host": "lab.example:8050"}).status_code == 200


@pytest.mark.browser
def test_clicks_boxes_text_and_buttons_in_a_browser(address: str) -> None:
    from playwright.sync_api import sync_playwright

    from .chromium import ARGS, CHROMIUM, settled

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1000, "height": 1400})
        page.set_default_timeout(30_000)
        page.goto(f"{address}/trial")
        page.get_by_text("result 42").wait_for()
        box = page.locator(".clickable .nsewdrag").first.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.25)  # head 2, layer 0
        page.wait_for_url("**head=2**")
        assert "layer=0" in page.url
        page.get_by_text("cell ['0', '2']").wait_for()
        dots = page.locator(".nsewdrag").nth(1).bounding_box()
        assert dots is not None
        page.mouse.move(dots["x"] + 2, dots["y"] + dots["height"] * 0.3)
        page.mouse.down()
        page.mouse.move(dots["x"] + dots["width"] * 0.7, dots["y"] + dots["height"] - 2, steps=5)
        page.mouse.up()
        page.wait_for_url("**dot=**")
        assert "dot=d0%2Cd1" in page.url
        page.get_by_text("cell ['0', '2'], dots d0,d1").wait_for()
        page.get_by_label("Text").fill("hello")
        page.get_by_label("Text").press("Control+Enter")
        page.wait_for_url("**text=hello**")
        settled(page)
        picture = io.BytesIO()
        Image.new("L", (9, 9)).save(picture, "PNG")
        page.locator("input[type=file]").set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": picture.getvalue()}
        )
        page.get_by_text(f"{len(picture.getvalue())} bytes").wait_for()
        page.goto(f"{address}/trial?slow=1")
        page.locator("[data-job=running]").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.locator("[data-job=cancelled]").wait_for()
        page.get_by_role("button", name="Run again").click()
        page.locator("[data-job=running]").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.locator("[data-job=cancelled]").wait_for()
        browser.close()

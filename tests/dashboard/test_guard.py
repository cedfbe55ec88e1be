"""Who may ask the server for what, and what a link to something that is gone says."""

from __future__ import annotations

import json

import pytest

from attlas.dashboard.app import create_app
from attlas.dashboard.guard import BODY_BYTES, TOKEN
from attlas.data.workspace import Workspace


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),  # typed, or from a bookmark
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "elsewhere.example"}, 403),
    ],
)
def test_pages_of_other_sites_start_no_work(headers: dict[str, str], status: int, workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    assert client.get("/api/overview", headers=headers).status_code == status


def test_a_link_from_another_site_opens_a_page(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    assert client.get("/features", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_elsewhere_a_token_is_needed(workspace: Workspace) -> None:
    client = create_app(workspace.path, host="0.0.0.0", token="told").server.test_client()
    for path in ("/", "/api/overview", f"/api/overview?{TOKEN}=other", "/_dash-layout", "/assets/attlas.js"):
        assert client.get(path).status_code == 401, path
    opened = client.get(f"/features?q=a&{TOKEN}=told")
    assert (opened.status_code, opened.headers["Location"]) == (302, "/features?q=a")
    assert "HttpOnly" in opened.headers["Set-Cookie"]
    assert client.get("/api/overview").status_code == 200  # the cookie


def test_a_body_that_is_too_large_is_refused_before_it_is_read(workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    length = {"CONTENT_LENGTH": str(BODY_BYTES + 1)}
    answer = client.post("/_dash-update-component", content_type="application/json", environ_overrides=length)
    assert answer.status_code == 413


@pytest.mark.parametrize("name", ["run", "pruned", "matching"])
def test_a_run_that_is_gone_is_said_to_be(name: str, workspace: Workspace) -> None:
    client = create_app(workspace.path).server.test_client()
    answer = client.get(f"/api/prune?{name}=drop_curve-gpt2-mini-00000000")
    assert answer.status_code == 404
    assert "there is no run 'drop_curve-gpt2-mini-00000000' in this workspace" in json.loads(answer.data)["error"]

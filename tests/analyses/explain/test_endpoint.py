"""An endpoint against a loopback server: what is sent, what is sent again, what is refused, and that no key leaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attlas.analyses.explain import Asker, Endpoint, Prompt
from attlas.errors import ConfigError, EndpointError

from .served import Served, completion, serving

KEY = "sk-secret-1234"
PROMPT = Prompt("be brief", "say one", 9)


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(Served()) as served:
        yield served


def _endpoint(server: Served, **more: object) -> Endpoint:
    return Endpoint(server.url, "tiny", **({"timeout": 5.0, "pause": 0.001, "key": KEY} | more))


def test_what_is_sent_and_read(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    server.usual = lambda body: body["messages"][1]["content"].upper()
    reply = _endpoint(server).ask(PROMPT)
    assert (reply.text, reply.n_tokens) == ("SAY ONE", 7)
    (body,) = server.bodies
    assert body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say one"}],
        "max_tokens": 9,
        "temperature": 0,
    }
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    for name, value in (("OPENAI_API_KEY", "theirs"), ("ATTLAS_API_KEY", "ours")):  # the second goes before the first
        monkeypatch.setenv(name, value)
        Endpoint(server.url + "/chat/completions/", "tiny").ask(PROMPT)
        assert (server.headers[-1]["Authorization"], server.paths[-1]) == (f"Bearer {value}", "/v1/chat/completions")
    _endpoint(server, key="").ask(PROMPT)
    assert "Authorization" not in server.headers[-1]


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}', 0.0),
        (500, {}, b"oops", 0.0),
        (200, {}, b"<html>not JSON</html>", 0.0),
        (200, {}, b'{"choices": []}', 0.0),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}', 0.0),
        (200, {}, completion("late"), 0.5),
    ],
    ids=["429", "500", "garbage", "no-choice", "no-text", "timeout"],
)
def test_what_fails_for_the_moment_is_sent_again(
    server: Served, answer: tuple[int, dict[str, str], bytes, float]
) -> None:
    late = 0.15 if answer[3] else 5.0
    server.answers = [answer]
    assert _endpoint(server, timeout=late).ask(PROMPT).text == "LABEL: something"
    assert len(server.bodies) == 2
    server.answers = [answer] * 3
    with pytest.raises(EndpointError, match=r"\(2 times\)$") as caught:
        _endpoint(server, timeout=late, retries=1).ask(PROMPT)
    assert "\n" not in str(caught.value)
    server.answers.clear()


def test_what_is_refused_is_said_once_without_the_key(server: Served) -> None:
    server.answers = [(401, {}, f'{{"error": {{"message": "wrong key {KEY}\\nask us"}}}}'.encode(), 0.0)]
    with pytest.raises(EndpointError, match=r"answered 401: wrong key … ask us$"):
        _endpoint(server).ask(PROMPT)
    assert len(server.bodies) == 1
    assert KEY not in repr(_endpoint(server)) + _endpoint(server).identity + _endpoint(server).name
    gone = server.url.replace(server.url.rsplit(":", 1)[1], "9/v1")  # the discard port, where nobody listens
    with pytest.raises(EndpointError, match="cannot be reached"):
        Endpoint(gone, "tiny", retries=0, key="").ask(PROMPT)


def test_the_key_does_not_follow_a_redirect(server: Served) -> None:
    with serving(Served()) as elsewhere:
        server.answers = [(307, {"Location": elsewhere.url + "/chat/completions"}, b"", 0.0)]
        with pytest.raises(EndpointError, match="answered 307, which leads elsewhere"):
            _endpoint(server).ask(PROMPT)
        assert elsewhere.bodies == []


def test_models_of_the_newer_form(server: Served) -> None:
    server.answers = [(400, {}, b'{"error": {"message": "use \'max_completion_tokens\' instead"}}', 0.0)]
    endpoint = _endpoint(server)
    assert endpoint.ask(PROMPT).text == endpoint.ask(PROMPT).text == "LABEL: something"
    assert [("max_tokens" in body, "temperature" in body) for body in server.bodies] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    assert server.bodies[-1]["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    ("url", "model", "key", "why"),
    [
        ("localhost:8000", "m", "", "no address"),
        ("file:///etc/passwd", "m", "", "no address"),
        ("http://me:word@localhost/v1", "m", "", "password"),
        ("http://localhost/v1", "", "", "--endpoint-model"),
        ("http://example.org/v1", "m", KEY, "unencrypted to example.org"),
    ],
)
def test_bad_endpoints_are_refused(url: str, model: str, key: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Endpoint(url, model, key=key)
    assert KEY not in str(caught.value)


def test_a_question_is_asked_once_and_a_budget_holds(server: Served, tmp_path: Path) -> None:
    prompts = [Prompt("count", str(i), 4) for i in range(4)]
    first = Asker(_endpoint(server), tmp_path, max_requests=2)
    assert [first.ask("s", p) is None for p in prompts] == [False, False, True, True]
    assert first.ask("s", prompts[0]) == "LABEL: something"  # costs nothing
    again = Asker(_endpoint(server), tmp_path, max_tokens=8)
    assert [again.ask("s", p) is None for p in prompts] == [False, False, False, False]  # two kept; 0 and 7 are below 8
    assert (again.n_requests, again.n_tokens, again.spent) == (2, 14, True)
    assert [a.kept for a in again.asked] == [True, True, False, False]
    assert len(server.bodies) == 4
    other = Asker(Endpoint(server.url, "other", key=""), tmp_path)
    other.ask("s", prompts[0])
    assert len(server.bodies) == 5  # another model is another question
    assert KEY.encode() not in (tmp_path / ".answers.sqlite").read_bytes()

"""Who may ask the server for what: this machine's own pages; elsewhere only those who have the link with its token."""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlencode, urlsplit

import flask

LOCAL = ("127.0.0.1", "localhost", "::1")
BODY_BYTES = 96_000_000  # an upload of 64 MB as base64 in JSON, and room for the rest
TOKEN = "token"  # its name in the printed link, and in the cookie after it
_WORK = (
    "/api",
    "/_dash-update-component",
    "/picture",
    "/circuit-groups",
)  # what starts work or gives data; pages themselves are empty shells
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)

_FRAMES = "'self' http://localhost:* http://127.0.0.1:* https://localhost:* https://127.0.0.1:*"


def new_token() -> str:
    """A token nobody can guess, for one start of the server."""
    return secrets.token_urlsafe(24)


def guard(server: flask.Flask, listens_on: str, token: str | None = None) -> None:
    """Refuse what no page of ours sends; tell browsers to load nothing from elsewhere.

    Args:
        listens_on: the address; on a local one, requests under another name are refused (DNS rebinding).
        token: needed by every request, as `?token=` once and from then on as a cookie; None: everyone who reaches the
            address may read.
    """
    server.config["MAX_CONTENT_LENGTH"] = BODY_BYTES  # where no length was stated

    @server.before_request
    def known() -> flask.Response | None:
        host = flask.request.host.rsplit(":", 1)[0].strip("[]")
        if listens_on in LOCAL and host not in LOCAL:
            return _refuse(f"this server answers to 127.0.0.1 and localhost, not to {host}")
        if _from_elsewhere(flask.request):
            return _refuse("pages of other sites may not ask this server for anything")
        if (flask.request.content_length or 0) > BODY_BYTES:  # before it is read
            return _refuse(f"at most {BODY_BYTES / 1e6:.0f} MB can be sent at once", 413)
        return None if token is None else _with_token(token)

    @server.after_request
    def only_here(response: flask.Response) -> flask.Response:
        policy = _POLICY
        if flask.request.args.get("embed") == "true":  # a notebook of this machine may hold the page in a frame
            policy = policy.replace("frame-ancestors 'none'", f"frame-ancestors {_FRAMES}")
        response.headers.setdefault("Content-Security-Policy", policy)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        return response


def _from_elsewhere(request: flask.Request) -> bool:
    """Whether another site's page sent it: what the browser says (Fetch Metadata), else the Origin header."""
    if not request.path.startswith(_WORK):
        return False
    origin = request.headers.get("Origin")
    if origin and urlsplit(origin).netloc != request.host:
        return True
    return request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")


def _with_token(token: str) -> flask.Response | None:
    given = flask.request.args.get(TOKEN)
    if given is not None and hmac.compare_digest(given.encode(), token.encode()):
        rest = {name: value for name, value in flask.request.args.items() if name != TOKEN}
        response = flask.redirect(flask.request.path + (f"?{urlencode(rest)}" if rest else ""))
        response.set_cookie(TOKEN, token, httponly=True, samesite="Strict")
        assert isinstance(response, flask.Response)
        return response
    kept = flask.request.cookies.get(TOKEN, "")
    if hmac.compare_digest(kept.encode(), token.encode()):
        return None
    return _refuse("open the link that `attlas serve` printed: it holds the token this server asks for", 401)


def _refuse(why: str, status: int = 403) -> flask.Response:
    response = flask.jsonify({"error": why})
    response.status_code = status
    return response

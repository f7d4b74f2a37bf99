"""The report of a run, served while the run goes on: a page that asks for news by itself.

    GET /       the page
    GET /news   what of it changes; 304 while nothing has

Whoever has the token may look, and nobody can do anything. On loopback no token is needed, but a
request has to be for a loopback name: a stranger's page could not make a browser ask otherwise.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from deploy.report.blocks import Page
from deploy.report.page import Live, make_page, render, render_content
from deploy.report.story import Story

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "wildflower_live"
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Served:
    """How a report is served: how often it is read anew, and who may look; no token: loopback."""

    every_s: float
    token: str | None = None


class Newest:
    """The newest page of some stories, made at most once in a while however many ask."""

    def __init__(self, read: Callable[[], Sequence[Story]], every_s: float) -> None:
        self._read = read
        self._every_s = every_s
        self._lock = threading.Lock()
        self._made = float("-inf")
        self._page: Page | None = None

    def page(self) -> Page:
        """Returns the page, no older than half of what passes between two questions."""
        with self._lock:
            if self._page is None or time.monotonic() - self._made > self._every_s / 2:
                told = f"Read anew every {self._every_s:g} s"
                self._page = make_page(self._read(), told)
                self._made = time.monotonic()
            return self._page


def make_app(read: Callable[[], Sequence[Story]], served: Served) -> Starlette:
    """Returns the app that serves what `read` returns; `read` may be called from any thread."""
    newest, live = Newest(read, served.every_s), Live(served.every_s)

    def index(_request: Request) -> Response:
        return HTMLResponse(render(newest.page(), live), headers=_HEADERS)

    def news(request: Request) -> Response:
        html = render_content(newest.page())
        version = f'"{hashlib.sha256(html.encode()).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": version}
        if request.headers.get("if-none-match") == version:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(html, headers=headers)

    return Starlette(
        routes=[Route("/", index), Route("/news", news)],
        middleware=[Middleware(Guard, token=served.token)],
    )


def server_of(app: Starlette) -> uvicorn.Server:
    """Returns what serves an app in silence; it ends when it is told to, whoever still looks."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=2,
        )
    )


class Guard:
    """Lets through who has the token, from the address once and as a cookie from then on."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or has the app answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.requests import Request

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            return None if _named(request) in _HERE else _refused(403, "ask for localhost")
        if _same(request.cookies.get(COOKIE, ""), self._token):
            return None
        if _same(request.query_params.get("token", ""), self._token):
            answer = RedirectResponse("/", 303, _HEADERS)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return answer
        return _refused(401, "open the address that `wildflower live` printed, with its token")


def _named(request: Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _refused(code: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", code, _HEADERS)

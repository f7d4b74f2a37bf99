"""Flower's SuperLink with doors: `python -m deploy.fleet.superlink FLOWER'S OPTIONS`.

Flower leaves doors open on its one port: whoever reaches the Control API may start code on the
server, and the documentation names all there is. Here a middleware stands before everything else:

    /v1/fleet/...     open: node authentication is Flower's
    /health           open
    /v1/runtime/...   only for processes of this machine, of which Flower asks for the secret that
                      SuperExec has, or for the token of a run's task that a ServerApp has
    all the rest      only with the operator's token, the run folders' `/v1/wildflower/...` too

It comes in through the module that Flower asks for extensions of its SuperLink
(`flwr/superlink/extensions.py`). The state folder is named by WILDFLOWER_STATE, which ServerApps
inherit. When the process that started this one is gone, it ends, and all that it started with it.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from deploy.fleet.connection import TOKEN_HEADER, read_token
from deploy.fleet.home import ServerHome
from deploy.fleet.processes import PARENT_VARIABLE, end_with_parent
from deploy.fleet.run_files import routes

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Receive, Scope, Send

STATE_VARIABLE = "WILDFLOWER_STATE"
KEYS_VARIABLE = "WILDFLOWER_KEYS"
_HOOK = "flwr.ee.superlink.extensions"
_HEADER = TOKEN_HEADER.lower().encode()
_FORWARDED = {b"forwarded", b"x-forwarded-for", b"x-real-ip"}


class Doors:
    """Lets a request in, or answers 401 (no token) or 403 (not from this machine)."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on or refuses, before anything of the body is read."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path = scope["path"]
        if path == "/health" or path.startswith("/v1/fleet/"):
            return None
        if path.startswith("/v1/runtime/"):
            return None if is_local(scope) else _refuse(403, "only for processes of the server")
        tokens = [value for name, value in scope["headers"] if name == _HEADER]
        if len(tokens) == 1 and hmac.compare_digest(tokens[0], self._token):
            return None
        return _refuse(401, f"the header {TOKEN_HEADER} with the operator's token is needed")


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine, and not through a proxy on it."""
    client, server = scope.get("client"), scope.get("server")
    if not client or any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    # A server that listens on one address of its own is called from that very address.
    return mapped.is_loopback or bool(server and client[0] == server[0])


def extension(home: ServerHome) -> ModuleType:
    """Returns the module of extensions that Flower's SuperLink asks for."""
    token = read_token(home.token_file)

    def get_middleware() -> tuple[Middleware, ...]:
        return (Middleware(Doors, token=token),)

    def configure_app(app: Starlette) -> None:
        app.router.routes.extend(routes(home.runs))

    module = ModuleType(_HOOK, "Wildflower's doors.")
    module.__dict__.update(get_middleware=get_middleware, configure_app=configure_app)
    return module


def main() -> None:
    """Runs the SuperLink with the options of the command line, which are Flower's own."""
    parent = int(os.environ[PARENT_VARIABLE])  # os.getppid() is another's if it died already
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    # Not below `flwr.ee` in the table of modules: the rest of Flower still sees that there is none.
    keys = os.environ.get(KEYS_VARIABLE)
    home = ServerHome(Path(os.environ[STATE_VARIABLE]), Path(keys) if keys else None)
    sys.modules[_HOOK] = extension(home)
    from flwr.superlink.cli.flower_superlink import flower_superlink

    flower_superlink()


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status)


if __name__ == "__main__":
    main()

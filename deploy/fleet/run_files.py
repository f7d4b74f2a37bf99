"""The run folders over HTTP, to look at and to copy: `/v1/wildflower/runs`.

    GET /v1/wildflower/runs                     [{"run", "status", "bytes"}]
    GET /v1/wildflower/runs/<id>/files          [{"path", "bytes"}]
    GET /v1/wildflower/runs/<id>/files/<path>   the bytes; a Range is honoured

Checkpoints, what clients keep (their databases) and half-written files are not given out, and
nothing is that a link points to: a file is served only if the list names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from shared_models.files import locked

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

RUN_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,80}")


def routes(runs: Path) -> Sequence[Route]:
    """Returns the routes that answer for the run folders in `runs`."""

    def every_run(_request: Request) -> Response:
        return JSONResponse(describe_runs(runs))

    def every_file(request: Request) -> Response:
        folder = run_folder(runs, request.path_params["run"])
        return _missing("run") if folder is None else JSONResponse(describe_files(folder))

    def one_file(request: Request) -> Response:
        folder = run_folder(runs, request.path_params["run"])
        path = None if folder is None else run_file(folder, request.path_params["path"])
        return _missing("file") if path is None else GrowingFile(path)

    base = "/v1/wildflower/runs"
    return [
        Route(base, every_run),
        Route(f"{base}/{{run}}/files", every_file),
        Route(f"{base}/{{run}}/files/{{path:path}}", one_file),
    ]


class GrowingFile(FileResponse):
    """A file that may be written to while it is sent: no more goes out than was announced."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file as it was when it was asked for."""
        await super().__call__(scope, receive, _bounded(send))


def _bounded(send: Send) -> Send:
    left = 0

    async def bounded(message: Message) -> None:
        nonlocal left
        if message["type"] == "http.response.start":
            left = int(dict(message["headers"])[b"content-length"])
        elif message["type"] == "http.response.body":
            message = {**message, "body": message["body"][:left]}
            left -= len(message["body"])
        await send(message)

    return bounded


def describe_runs(runs: Path) -> list[dict[str, Any]]:
    """Returns each run's id, status and size in bytes, the oldest first."""
    folders = (
        [f for p in runs.iterdir() if (f := run_folder(runs, p.name))] if runs.exists() else []
    )
    folders.sort(key=lambda folder: folder.stat().st_ctime)
    return [
        {
            "run": folder.name,
            "status": _status(folder),
            "bytes": sum(entry["bytes"] for entry in describe_files(folder)),
        }
        for folder in folders
    ]


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """Returns the path in the folder and the size of each file that is given out."""
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": size}
        for path, size in sorted(_files(folder))
    ]


def run_folder(runs: Path, name: str) -> Path | None:
    """Returns a run's folder, or None where there is none of that name."""
    path = runs / name
    found = RUN_NAME.fullmatch(name) and path.is_dir() and not path.is_symlink()
    return path if found else None


def run_file(folder: Path, name: str) -> Path | None:
    """Returns a file that the list names, or None: nothing else is given out."""
    parts = name.split("/")
    if any(not part or _hidden(part) for part in parts) or parts[0] == "checkpoints":
        return None
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            return None
    return path if path.is_file() else None


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for place, folders, names in os.walk(folder):  # which does not follow links
        if Path(place) == folder and "checkpoints" in folders:
            folders.remove("checkpoints")
        folders[:] = [name for name in folders if not _hidden(name)]
        for path in (Path(place) / name for name in names if not _hidden(name)):
            with contextlib.suppress(FileNotFoundError):  # gone since
                found = path.lstat()
                yield from [(path, found.st_size)] if stat.S_ISREG(found.st_mode) else []


def _hidden(name: str) -> bool:
    # Half-written files begin with a dot, and so do the two names that lead elsewhere.
    return name.startswith(".") or ".sqlite" in name or "\0" in name


def _status(folder: Path) -> str:
    try:
        told = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        told = {}
    config = folder / "config.toml"
    if not config.is_file():
        return "unfinished"
    with locked(config) as free:
        return str(told.get("status", "unfinished")) if free else "running"


def _missing(what: str) -> Response:
    return JSONResponse({"detail": f"no such {what}"}, 404)

"""What a report reads of a run on a fleet, copied here as it grows."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from deploy.report.reading import read_story
from deploy.report.story import Status, Story
from server.event_log import EVENTS
from shared_models.errors import ServerError
from shared_models.files import write_atomic

_METRICS = "metrics.jsonl"
_BEGUN = b'"stage_started"'
_WHOLE = re.compile(
    r"config\.toml|manifest\.json|summary\.json|samples\.json"
    r"|client_metrics/[A-Za-z0-9][\w.-]*\.json",
    re.ASCII,
)


class Runs(Protocol):
    """A server's run folders: what `Remote` is here, which says what raises what."""

    def folders(self) -> list[dict[str, Any]]:
        """Returns the runs in the server's state folder: `run`, `status`, `bytes`."""

    def files(self, run: str) -> Mapping[str, int]:
        """Returns the sizes of the files that can be read of a run."""

    def read(self, run: str, path: str, offset: int = 0) -> bytes:
        """Returns a file of a run from an offset on; nothing where there is no such byte."""


class Mirror:
    """A run on a server as a story; while the server is away it stays what it was, and says so."""

    def __init__(self, remote: Runs, run: str, folder: Path) -> None:
        self._remote = remote
        self._run = run
        self._folder = folder / run
        self._sizes: dict[str, int] = {}
        self._status: Status = "unfinished"
        self._heard = ""

    def story(self) -> Story:
        """Returns what is known now; raises `ServerError` when nothing ever was."""
        away = ""
        try:
            self._refresh()
            self._heard = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        except ServerError:
            if not (self._folder / "config.toml").exists():
                raise
            away = f"the server does not answer; this is what it told until {self._heard}"
        return replace(read_story(self._folder, self._status), away=away)

    def _refresh(self) -> None:
        told = {str(own["run"]): str(own["status"]) for own in self._remote.folders()}
        status = told.get(self._run, "")
        self._status = "running" if status == "running" else "unfinished"
        files = self._remote.files(self._run)
        newest = max((name for name in files if name.startswith("client_metrics/")), default="")
        for name, size in files.items():
            if _WHOLE.fullmatch(name) and (name == newest or "/" not in name):
                self._copy(name, size)
        at = self._kept(EVENTS, files)
        news = self._remote.read(self._run, EVENTS, at) if files.get(EVENTS, 0) > at else b""
        # A run that is resumed takes back rounds that are in no checkpoint.
        self._grow(_METRICS, files, anew=_BEGUN in news)
        self._keep(EVENTS, at, news)  # last: what was read of a server that goes away is read again

    def _grow(self, name: str, files: Mapping[str, int], *, anew: bool) -> None:
        """Keeps what is new of a file that grows, or all of it."""
        at, size = 0 if anew else self._kept(name, files), files.get(name, 0)
        if anew or size != at:
            self._keep(name, at, self._remote.read(self._run, name, at) if size else b"")

    def _kept(self, name: str, files: Mapping[str, int]) -> int:
        """Returns how many bytes of a file are here, none of one that has shrunk since."""
        path = self._folder / name
        size = path.stat().st_size if path.exists() else 0
        return size if size <= files.get(name, 0) else 0

    def _keep(self, name: str, at: int, fresh: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if at == 0:
            write_atomic(path, fresh)
        elif fresh:
            with path.open("ab") as file:
                file.write(fresh)

    def _copy(self, name: str, size: int) -> None:
        if self._sizes.get(name) != size:
            write_atomic(self._folder / name, self._remote.read(self._run, name))
            self._sizes[name] = size

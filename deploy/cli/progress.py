"""The live display of a run: one screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live

from deploy.cli.screen import Size, screen
from deploy.cli.standing import Standing, after, ended
from deploy.events import ArtefactMeasured, Event, ExportStarted
from server.events import BlockFinished, RoundFinished, StageStarted
from server.plain import describe


class Display:
    """An observer that shows events; a context manager, so that the terminal is left as it was."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._draws = console.is_terminal and not console.is_dumb_terminal
        self._stages: tuple[Standing, ...] = ()
        self._width = console.width
        self._changing = threading.Lock()  # evaluation ends in a thread of its own
        self._live = self._blank()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case ExportStarted():
                # The exporters silence the terminal while they work: nothing is drawn meanwhile.
                self._end()
                self._say(f"{event.stage}: converting, quantizing, measuring")
            case ArtefactMeasured(artefact):
                parity = artefact.parity
                self._say(f"exported {artefact.file}, {parity.metric} {parity.score:.4f}")
            case StageStarted() | BlockFinished() | RoundFinished() if self._draws:
                with self._changing:
                    self._stages = after(self._stages, event, time.monotonic())
                    self._live.start()
            case _:
                self._say(describe(event))

    def _say(self, line: str) -> None:
        if line:
            self._console.print(line, markup=False, soft_wrap=True)

    def _end(self) -> None:
        """Leaves the newest screen where it is; what comes next begins below it."""
        with self._changing:
            self._stages = ended(self._stages, time.monotonic())
            self._live.stop()
            self._stages, self._live = (), self._blank()

    def _blank(self) -> Live:
        return Live(console=self._console, get_renderable=self._drawn, refresh_per_second=4)

    def _drawn(self) -> Group:
        width, height = self._console.size
        if width != self._width:  # the terminal has broken the old lines anew: begin on a clean one
            self._console.control(Control.home(), Control.clear())
            self._width = width
        size = Size(width, height, plain=self._console.options.ascii_only)
        return screen(self._stages, time.monotonic(), size)

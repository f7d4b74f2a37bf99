"""The live display of a run: a bar per stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from deploy.events import ArtefactMeasured, Event, ExportStarted
from server.events import BlockFinished, RoundFinished, StageStarted
from server.plain import (
    describe,
    describe_clients,
    describe_losses,
    describe_round,
    unexplained,
)
from server.records import RoundRecord


class _ClientsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} clients/s" if task.speed else "")


class Display:
    """An observer that shows events; a context manager, so that the terminal is left as it was."""

    def __init__(self, console: Console) -> None:
        self._live = console.is_terminal
        self._bar = TaskID(0)
        self._rounds = 0
        self._evaluation = ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("clients  {task.fields[told]}"),
            _ClientsPerSecond(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
            speed_estimate_period=60.0,
            expand=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case ExportStarted():
                # The exporters silence the terminal while they work: no bar may be drawn meanwhile.
                self._progress.stop()
                self._say(f"{event.stage}: converting, quantizing, measuring")
            case ArtefactMeasured(artefact):
                parity = artefact.parity
                self._say(f"exported {artefact.file}, {parity.metric} {parity.score:.4f}")
            case StageStarted() if self._live:
                self._start(event)
            case BlockFinished() if self._live:
                self._progress.advance(self._bar, event.clients)
            case RoundFinished() if self._live:
                self._finish_round(event.record)
            case _:
                self._say(describe(event))

    def _say(self, line: str) -> None:
        if line:
            self._progress.console.print(line, markup=False, soft_wrap=True)

    def _start(self, event: StageStarted) -> None:
        self._rounds = event.rounds
        self._bar = self._progress.add_task(
            f"{event.stage} {event.done}/{event.rounds}",
            total=event.rounds * event.clients_per_round,
            completed=event.done * event.clients_per_round,
            told="",
        )

    def _finish_round(self, record: RoundRecord) -> None:
        loss = f"loss {record.train_loss:.3f} " if record.train_loss is not None else ""
        lost = describe_losses(record)
        if record.eval or record.clients_eval:  # not every round has one; the last stays in view
            measured = [f"{name} {value:.4f}" for name, value in (record.eval or {}).items()]
            shown = [told for told in measured if not told.startswith("loss")]
            if record.clients_eval:
                shown.append(describe_clients(record.clients_eval))
            self._evaluation = ", ".join(shown)
        self._progress.update(
            self._bar,
            description=f"{record.stage} {record.round}/{self._rounds}",
            told="  ".join(part for part in (loss + self._evaluation, lost) if part),
        )
        if unexplained(record):
            self._say(describe_round(record))

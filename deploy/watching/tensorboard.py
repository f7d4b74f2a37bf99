"""TensorBoard: a round is a step, in `tensorboard/` in the run folder."""

from __future__ import annotations

from deploy.events import Event
from deploy.watching.scalars import scalars
from deploy.watching.sinks import AboutRun
from server.event_log import Ended
from server.events import RoundFinished


class TensorBoard:
    """Writes a run's rounds where `tensorboard --logdir` finds them."""

    def __init__(self, about: AboutRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(about.folder / "tensorboard"))

    def __call__(self, _run: str, event: Event | Ended) -> None:
        """Takes an event."""
        if isinstance(event, RoundFinished):
            for name, value in scalars(event.record).items():
                self._writer.add_scalar(name, value, event.record.round, event.record.time)
            self._writer.flush()

    def close(self, _reason: str | None) -> None:
        """Ends the file."""
        self._writer.close()

"""The other half of a server that is two containers: the SuperExec, and the ServerApps it starts.

They aggregate and evaluate, where the GPU is, and see no key: they share the state folder with the
SuperLink and reach it over the pod's loopback. When it is started anew, which its new secret tells,
the runs that were at work are over for it: they are ended, and go on when they are submitted again.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from deploy.fleet.connection import Connection, answered, open_http
from deploy.fleet.disk import bound_log
from deploy.fleet.health import Health, HealthAddress
from deploy.fleet.home import ServerHome
from deploy.fleet.launch import changed, ended, start, superexec_options
from deploy.fleet.processes import adopt_orphans, end_descendants, reap
from deploy.fleet.server import STOP_S, Say
from deploy.fleet.stopping import Stop, stop_on_signals
from shared_models.errors import Interrupted, WildflowerError

_TOLD_S = 5.0


def execute(
    home: ServerHome, connection: Connection, address: HealthAddress | None, say: Say
) -> None:
    """Runs until SIGTERM (returns) or Ctrl-C (`Interrupted`)."""
    with Health(address) as health, stop_on_signals() as stop:
        adopt_orphans()
        try:
            _Executor(home, connection, health, say, stop).run()
        finally:
            end_descendants(STOP_S)
            reap()
        if stop.interrupted:
            raise Interrupted("the executor was stopped")
        say("stopped")


@dataclass(frozen=True)
class _Executor:
    """One SuperExec after the other, until it is stopped."""

    home: ServerHome
    connection: Connection
    health: Health
    say: Say
    stop: Stop

    def run(self) -> None:
        """Returns when it was asked to stop."""
        while (secret := self._wait()) is not None:
            if (why := self._watch(secret)) is None:
                return
            self.health.beat(ready=False)
            self.say(f"{why}; the SuperExec is started anew")
            end_descendants(grace_s=2)
            reap()

    def _wait(self) -> int | None:
        """Returns when the secret of a SuperLink that answers was made; None when it is to stop."""
        begun = time.monotonic()
        is_told = False
        while not self.stop.within(0.5):
            secret = changed(self.home.superexec_secret)
            if secret and self._answers():
                return secret
            if not is_told and time.monotonic() - begun > _TOLD_S:
                is_told = True
                self.say(f"waits for the server of {self.home.path}, {self.connection.address}")
            self.health.beat(ready=False)
        return None

    def _watch(self, secret: int) -> str | None:
        """Runs a SuperExec; returns why it has to be another, None when it is to stop."""
        log = self.home.path / "executor.log"
        options = superexec_options(self.home, self.connection)
        processes = {"SuperExec": start(self.home, "superexec", options, log)}
        self.say(f"ready for the runs of {self.connection.address}")
        while not self.stop.within(0.5):
            if (why := ended(processes)) is not None:
                return why
            if changed(self.home.superexec_secret) != secret:
                return "the SuperLink was started anew"
            self.health.beat(ready=True)
            bound_log(log)
        return None

    def _answers(self) -> bool:
        with (
            contextlib.suppress(WildflowerError),
            answered(self.connection),
            open_http(self.connection, timeout=5) as http,
        ):
            return bool(http.get("/health").status_code == 200)
        return False

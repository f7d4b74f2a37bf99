"""What a server says of itself: its SuperLink, its devices, its queue, its certificate."""

from __future__ import annotations

import contextlib
from collections import Counter

from deploy.fleet.certificates import expiry
from deploy.fleet.home import Running, ServerHome
from deploy.fleet.registry import client_names
from deploy.metrics import catalog
from deploy.metrics.series import Change, Series
from shared_models.errors import WildflowerError


class ServerMetrics:
    """Looks at a server's state folder, and asks the SuperLink that this process started.

    Where that is, is told by who started it, not by the folder: in a pod the runs' own code can
    write there, and the operator's token would go where it says.
    """

    def __init__(self, home: ServerHome, own: Running, series: Series) -> None:
        self.series = series
        self._home, self._own = home, own
        self._superlink: int | None = None

    def look(self) -> None:
        """Takes in how the server is now; what cannot be seen keeps its last value."""
        running = None
        with contextlib.suppress(WildflowerError):
            running = self._home.running()
        pid = None if running is None else running.superlink_pid
        started = pid is not None and pid != self._superlink
        self._superlink = pid if pid is not None else self._superlink
        changes = [
            Change(catalog.SUPERLINK_UP, (), pid is not None),
            Change(catalog.SUPERLINK_STARTS, (), started),
            Change(catalog.KEYS, (), len(client_names(self._home))),
        ]
        with contextlib.suppress(WildflowerError, OSError, ValueError):
            ends = expiry(self._home.certificate).timestamp()
            changes.append(Change(catalog.CERTIFICATE, (), ends))
        self.series.apply(changes)
        if pid is not None:
            self._ask()

    def _ask(self) -> None:
        from deploy.fleet.remote import Remote

        with (
            contextlib.suppress(WildflowerError),
            Remote(self._home.connection(self._own)) as remote,
        ):
            nodes = Counter(node.status for node in remote.nodes())
            runs = Counter(run.status for run in remote.flower_runs())
            self.series.replace(catalog.NODES, {(s,): float(n) for s, n in nodes.items()})
            self.series.replace(catalog.RUNS, {(s,): float(n) for s, n in runs.items()})

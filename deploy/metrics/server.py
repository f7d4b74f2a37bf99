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
    """Looks at a server's state folder, and asks the SuperLink that runs there."""

    def __init__(self, home: ServerHome, series: Series) -> None:
        self._home, self._series = home, series
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
        self._series.apply(changes)
        if running is not None and pid is not None:
            self._ask(running)

    def _ask(self, running: Running) -> None:
        from deploy.fleet.remote import Remote

        with contextlib.suppress(WildflowerError), Remote(self._home.connection(running)) as remote:
            nodes = Counter(node.status for node in remote.nodes())
            runs = Counter(run.status for run in remote.flower_runs())
            self._series.replace(catalog.NODES, {(s,): float(n) for s, n in nodes.items()})
            self._series.replace(catalog.RUNS, {(s,): float(n) for s, n in runs.items()})

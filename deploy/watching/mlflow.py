"""MLflow: a run of ours is one of its runs, with the config as parameters and rounds as steps.

Without MLFLOW_TRACKING_URI they are in `mlflow.db` in the current folder.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deploy.events import Event
from deploy.watching.scalars import scalars
from deploy.watching.sinks import AboutRun
from server.event_log import Ended
from server.events import RoundFinished

if TYPE_CHECKING:
    from mlflow import MlflowClient

_EXPERIMENT = "wildflower"
_TAG = "wildflower.folder"
_LONGEST = 500  # of a parameter's value


class MLflow:
    """Tells a tracking server, or a local file, of a run's rounds; goes on with one it knows."""

    def __init__(self, about: AboutRun) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table it makes
        uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self._client = MlflowClient(uri)
        self._run = _run(self._client, about)

    def __call__(self, _run: str, event: Event | Ended) -> None:
        """Takes an event."""
        from mlflow.entities import Metric

        if isinstance(event, RoundFinished):
            at_ms, step = int(event.record.time * 1000), event.record.round
            told = scalars(event.record).items()
            metrics = [Metric(name, value, at_ms, step) for name, value in told]
            self._client.log_batch(self._run, metrics=metrics)

    def close(self, reason: str | None) -> None:
        """Says how it ended."""
        if reason is not None:
            self._client.set_tag(self._run, "wildflower.reason", reason)
        status = "FINISHED" if reason is None else "FAILED"
        self._client.set_terminated(self._run, status)


def _run(client: MlflowClient, about: AboutRun) -> str:
    """Returns the id of MLflow's run for ours: one that is gone on with, or a new one."""
    from mlflow.entities import Param

    found = client.get_experiment_by_name(_EXPERIMENT)
    experiment = client.create_experiment(_EXPERIMENT) if found is None else found.experiment_id
    folder = str(about.folder.absolute())
    known = client.search_runs([experiment], f"tags.`{_TAG}` = '{folder}'", max_results=1)
    if known:
        client.update_run(known[0].info.run_id, status="RUNNING")
        return str(known[0].info.run_id)
    made = client.create_run(experiment, tags={_TAG: folder}, run_name=about.id)
    params = [Param(*pair) for pair in parameters(tomllib.loads(about.config))]
    client.log_batch(made.info.run_id, params=params[:100])
    return str(made.info.run_id)


def parameters(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yields a config's keys and values as a tracker takes them.

    >>> dict(parameters({"seed": 0, "stages": [{"name": "train", "rounds": 3}]}))
    {'seed': '0', 'stages.train.name': 'train', 'stages.train.rounds': '3'}
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from parameters(value, f"{above}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for place, own in enumerate(value):
                yield from parameters(own, f"{above}{key}.{own.get('name', place)}.")
        else:
            yield f"{above}{key}", str(value)[:_LONGEST]

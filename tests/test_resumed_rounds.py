"""A round from a checkpoint has the bytes of a round from memory, whatever the parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.checkpoints import Checkpoint, load_latest, save_checkpoint
from server.coordinator import begin_stage, run_round
from shared_models.arrays import digest
from tests.in_memory import opened, send_to

# The norm of a gradient is a sum over all arrays: it tells in which order they came.
CLIPPED = "stages.train.local_clip_norm=0.5"
CASES = [
    (CLIPPED,),
    (CLIPPED, "stages.train.objective=fedprox"),
    (CLIPPED, "stages.train.objective=fednova", "stages.train.local_optimizer=momentum"),
    (CLIPPED, "plan.trainer=vectorised"),
    ("stages.train.objective=scaffold",),
    (CLIPPED, "stages.train.aggregator=geometric_median", "stages.train.server_optimizer=yogi"),
    ("stages.train.aggregator=clipped_mean", "stages.train.clip_norm=0.1"),
]


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_a_round_from_a_checkpoint_has_the_bytes_of_one_from_memory(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    _, host, run = opened(*overrides, "stages.train.server_optimizer=sgd", *overrides)
    first = run_round(run, begin_stage(run, host.task.build(0)), send_to(host), lambda _: None)
    clients = run.population.client_ids
    save_checkpoint(
        tmp_path, 0, Checkpoint(first.state, first.record, clients, first.cohort), keep=1
    )
    resumed = load_latest(tmp_path, lambda _: None)
    assert resumed is not None
    second, again = (
        run_round(run, state, send_to(host), lambda _: None).state
        for state in (first.state, resumed.state)
    )
    assert digest(second.params) == digest(again.params)

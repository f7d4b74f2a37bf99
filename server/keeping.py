"""Who keeps what clients keep: the server in a simulation, on a fleet the clients' own nodes."""

from __future__ import annotations

from dataclasses import replace

from server.coordinator import StageRun
from shared_models.errors import InputError


def kept_on_nodes(run: StageRun, run_id: str | None) -> StageRun:
    """Returns the stage, on a fleet with nodes that keep what their clients keep under `run_id`.

    Raises `InputError` when they would have to and cannot: it is a client's own, and does not
    travel to the server.
    """
    population, stage = run.population, run.stage
    if not run.parts.objective.keeps_state or population.node_of is None:
        return run
    what = "personal" if stage.personal else f"objective {stage.objective!r}"
    told = f"stages.{stage.name}: with {what} clients keep arrays of their own from round to round"
    if population.forgetful:
        raise InputError(
            f"{told}, for which the node of client {population.forgetful[0]} has no place: start "
            "nodes by `wildflower client`, or run it with `wildflower simulate`"
        )
    if run_id is None:
        raise InputError(
            f"{told}, which nodes file under an id that only `wildflower submit` gives: "
            "start the run with it, or with `wildflower simulate`"
        )
    return replace(run, kept_under=run_id)

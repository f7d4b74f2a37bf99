"""The plan of a run: forced, taken over from another run, or measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.events import Observer
from shared_models.config import Config, Plan
from shared_models.errors import InputError

if TYPE_CHECKING:
    from server.run_folder import RunFolder


def plan_overrides(given: str) -> list[str]:
    """Returns config overrides for `--plan`: a trainer's name, or another run's manifest.json.

    Raises `InputError` when the file is not a manifest, or tells of a fleet's plan.
    """
    path = Path(given)
    if path.suffix != ".json":
        return [f"plan.trainer={json.dumps(given)}"]
    plan = _plan_in(path)
    if plan.get("block_map") != "cohort":
        raise InputError(f"--plan {path}: its blocks follow a fleet's nodes, which are not here")
    known = {key: plan[key] for key in Plan.model_fields if key in plan}
    return [f"plan.{key}={json.dumps(value)}" for key, value in known.items()]


def _plan_in(path: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text())["plan"]
    except FileNotFoundError:
        raise InputError(f"--plan {path}: there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError):
        plan = {}
    if not isinstance(plan, dict) or not plan:
        raise InputError(f"--plan {path}: not the manifest.json of a run")
    return plan


def adopt_plan(config: Config, folder: RunFolder) -> Config:
    """Returns the config with what its plan leaves open as the run in `folder` has it."""
    if folder.is_new() or not config.plan.is_open:
        return config
    theirs, own = folder.config().plan.model_dump(), config.plan
    told = own.model_dump(exclude_unset=True)
    told = {key: value for key, value in told.items() if value != "auto"}
    return config.model_copy(update={"plan": Plan(**{**theirs, **told})})


def settle_plan(config: Config, observe: Observer) -> Config:
    """Returns the config with a plan that leaves nothing open, measured on this machine."""
    if not config.plan.is_open:
        return config
    from clients.host import open_host
    from clients.planner import settle
    from server.events import Notice

    measured = settle(open_host(config))
    observe(Notice(f"plan: {measured.describe()}"))
    return config.model_copy(update={"plan": measured.plan})

"""The plan of a run: forced, taken over from another run, or measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.events import Event, Observer
from shared_models.config import Config, Plan
from shared_models.errors import InputError

if TYPE_CHECKING:
    from server.run_folder import RunFolder


def plan_overrides(given: str) -> list[str]:
    """Returns config overrides for `--plan`: a trainer's name, or another run's manifest.json.

    Raises `InputError` when the file is not a manifest.
    """
    path = Path(given)
    if not _is_manifest(path):
        return [f"plan.trainer={json.dumps(given)}"]
    plan = _read_manifest(path)["plan"]
    known = {key: plan[key] for key in Plan.model_fields if key in plan}
    return [f"plan.{key}={json.dumps(value)}" for key, value in known.items()]


def config_beside(given: str | None) -> Path | None:
    """Returns the config of the run whose manifest `--plan` names, to be run again."""
    path = Path(given or "")
    return path.with_name("config.toml") if _is_manifest(path) else None


def check_replay(given: str, digest: str) -> None:
    """Raises `InputError` where a fleet is replayed that trained on other data than is here."""
    path = Path(given)
    if not _is_manifest(path):
        return
    manifest = _read_manifest(path)
    if manifest["plan"].get("block_map") != "node" or manifest.get("data_sha256") == [digest]:
        return
    raise InputError(
        f"--plan {path}: the fleet trained on data that is not here, maybe its devices' own files "
        f"(data_sha256 {_short(manifest.get('data_sha256'))}, here {digest[:12]}): no replay"
    )


def _short(digests: object) -> str:
    found = digests if isinstance(digests, list) else []
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return ", ".join(str(digest)[:12] for digest in found[:2]) + more


def _is_manifest(path: Path) -> bool:
    return path.suffix == ".json"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        known = isinstance(manifest["plan"], dict) and manifest["plan"]
    except FileNotFoundError:
        raise InputError(f"--plan {path}: there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(f"--plan {path}: not the manifest.json of a run")
    return dict(manifest)


def adopt_plan(config: Config, folder: RunFolder) -> Config:
    """Returns the config with what its plan leaves open as the run in `folder` has it."""
    if folder.is_new() or not config.plan.is_open:
        return config
    theirs, own = folder.config().plan.model_dump(), config.plan
    told = own.model_dump(exclude_unset=True)
    told = {key: value for key, value in told.items() if value != "auto"}
    return config.model_copy(update={"plan": Plan(**{**theirs, **told})})


def settle_plan(config: Config, folder: Path, observe: Observer) -> tuple[Config, Observer]:
    """Returns the config with a plan that leaves nothing open, measured on this machine.

    The observer is `observe`, and writes into the manifest what was measured, and why of some
    trainers nothing was.
    """
    from clients.host import open_host
    from clients.planner import settle
    from server.events import Notice, StageStarted
    from server.run_folder import RunFolder

    measured = settle(open_host(config))
    observe(Notice(f"plan: {measured.describe()}"))

    def told(event: Event) -> None:
        if isinstance(event, StageStarted):
            RunFolder(folder).update_manifest(measured=measured.facts())
        observe(event)

    return config.model_copy(update={"plan": measured.plan}), told

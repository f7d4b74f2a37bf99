"""From a run folder to its story. Files may be half there, old, or a stranger's: all is checked."""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from deploy.edge.artefact import Artefact
from deploy.report.partition import PARTITION, Skew
from deploy.report.story import Facts, OnClients, Stage, Status, Story, Totals
from server.event_log import EVENTS, Ended, read_event
from server.events import Notice, Waiting
from server.plain import describe
from server.records import RoundRecord
from server.sample_records import SAMPLES, Samples
from shared_models.errors import InputError, one_line
from shared_models.files import locked, write_json

T = TypeVar("T")

FAILED = "failed.json"
_MOST_BYTES = 1 << 28
_TELLING = tuple(f'{{"event": "{kind}"' for kind in ("notice", "waiting", "stage_started"))
_LEARNING = ("train", "finetune", "pretrain", "distill")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Returns what checks values of a type: it takes longer to make than to use."""
    return TypeAdapter(kind)


class _Folder:
    """Reads a folder's files; what is damaged is noted, not raised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []

    def text(self, name: str) -> str:
        """Returns a file's text, empty where there is none."""
        try:
            with (self.path / name).open("rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            self.note(name, error.strerror or "cannot be read")
            return ""

    def note(self, name: str, problem: str) -> None:
        """Keeps what is wrong with a file."""
        self.notes.append(one_line(f"{name} cannot be read: {problem}"))

    def parsed(self, name: str, kind: type[T]) -> T | None:
        """Returns a JSON file as a value of a type; None where it is not there, or damaged."""
        text = self.text(name)
        return self.value(name, kind, text) if text else None

    def value(self, name: str, kind: type[T], text: str) -> T | None:
        """Returns JSON as a value of a type, None for anything else."""
        try:
            known: Any = kind  # a type with a variable in it is no key to mypy
            found: T = _adapter(known).validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            self.note(name, f"{where} {problem['msg']}".strip())
            return None
        return found


def read_story(path: Path, status: Status | None = None) -> Story:
    """Returns what a run folder tells, at any time; `InputError` when it is none.

    `status` is that of a folder elsewhere, of which this is a copy.
    """
    folder = _Folder(path)
    text = folder.text("config.toml")
    if not text:
        raise InputError(f"{path}: not a run folder: there is no config.toml in it")
    config = _config(path, text)
    summary: dict[str, Any] = folder.parsed("summary.json", dict) or {}
    manifest: dict[str, Any] = folder.parsed("manifest.json", dict) or {}
    found, reason = _state(folder, summary, status)
    records = _records(folder)
    notices, waiting = _noted(folder)
    return Story(
        name=path.resolve().name,
        status=found,
        reason=reason,
        config=config,
        config_text=text,
        manifest=manifest,
        model=_part(folder, "manifest.json", Facts, manifest.get("model")) or Facts(),
        totals=_part(folder, "summary.json", Totals, summary) or Totals(),
        stages=_stages(config, records),
        files=_files(folder, summary),
        clients=_on_clients(folder, records),
        skew=folder.parsed(PARTITION, Skew),
        samples=folder.parsed(SAMPLES, Samples) if found != "running" else None,
        notes=tuple(folder.notes),
        notices=notices,
        waiting=waiting if found == "running" else "",
    )


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path / 'config.toml'}: damaged: {one_line(str(error))}") from None
    stages, data = config.get("stages"), config.get("data", {})
    config["data"] = data
    tables = [data, *stages] if isinstance(stages, list) else [None]
    if not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path / 'config.toml'}: has no stages; it is no config of a run")
    return config


def _part(folder: _Folder, name: str, kind: type[T], values: object) -> T | None:
    """Returns a part of a JSON file as a value; keys that are not known are passed over."""
    return None if values is None else folder.value(name, kind, json.dumps(values))


def _state(
    folder: _Folder, summary: Mapping[str, Any], status: Status | None
) -> tuple[Status, str]:
    reason = one_line(str(summary.get("reason") or ""))
    told = str(summary.get("status", ""))
    held = status is None and _is_held(folder.path / "config.toml")
    if told == "done":
        return "done", ""
    if held or status == "running":
        return "running", ""
    if told == "failed":
        return "failed", reason
    if why := _failure(folder):
        return "failed", why
    return ("trained" if told == "trained" else status or "unfinished"), ""


def _is_held(config: Path) -> bool:
    """Whether a process is at work in the folder."""
    try:
        with locked(config) as free:
            return not free
    except OSError:
        return False


def _failure(folder: _Folder) -> str:
    """Returns why a run ended before it was done, empty where nobody told."""
    told: dict[str, Any] = folder.parsed(FAILED, dict) or {}
    if told:
        return one_line(str(told.get("reason", "")))
    ends = [read_event(line) for line in folder.text(EVENTS).splitlines()[-1:]]
    return next((one_line(e.reason or "") for e in ends if isinstance(e, Ended)), "")


def _noted(folder: _Folder) -> tuple[tuple[str, ...], str]:
    """Returns what a fleet's server noted, and whom it waits for before a stage begins."""
    notices: dict[str, None] = {}
    waiting = ""
    for line in folder.text(EVENTS).splitlines():
        event = read_event(line) if line.startswith(_TELLING) else None
        if isinstance(event, Notice):
            notices[one_line(event.text)] = None
        elif event is not None:
            waiting = describe(event) if isinstance(event, Waiting) else ""
    return tuple(notices), waiting


def keep_failure(path: Path, reason: str) -> None:
    """Writes why a run ended before it was done; nothing where there is no run."""
    if (path / "config.toml").is_file():
        write_json(path / FAILED, {"reason": one_line(reason)})


def _records(folder: _Folder) -> list[RoundRecord]:
    """Returns the rounds so far; a last line that is still being written is passed over."""
    lines = folder.text("metrics.jsonl").split("\n")[:-1]
    found = [folder.value("metrics.jsonl", RoundRecord, line) for line in lines]
    return [record for record in found if record is not None]


def _stages(config: Mapping[str, Any], records: Sequence[RoundRecord]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    first = 0
    for told in config["stages"]:
        kind = str(told.get("kind", ""))
        if kind not in _LEARNING:
            continue
        name = str(told.get("name", kind))
        own = tuple(record for record in records if record.stage == name)
        rounds = told.get("rounds", 0)
        asked = rounds if isinstance(rounds, int) else 0
        stages.append(Stage(name, kind, asked, told, own, first))
        first += max((record.round for record in own), default=0)
    return tuple(stages)


def _files(folder: _Folder, summary: Mapping[str, Any]) -> tuple[Artefact, ...]:
    told = summary.get("artefacts", [])
    found = [_part(folder, "summary.json", Artefact, one) for one in told or ()]
    return tuple(file for file in found if file is not None)


def _on_clients(folder: _Folder, records: Sequence[RoundRecord]) -> OnClients | None:
    """Returns what clients measured last."""
    for record in reversed(records):
        name = f"client_metrics/{record.stage}-{record.round:06d}.json"
        if record.clients_eval is None or "/" in record.stage:
            continue
        columns: dict[str, Any] | None = folder.parsed(name, dict)
        if columns is not None:
            return _measured(folder, name, record, columns)
    return None


def _measured(
    folder: _Folder, name: str, record: RoundRecord, columns: Mapping[str, Any]
) -> OnClients | None:
    ids = folder.value(name, list[int], json.dumps(columns.get("client_id")))
    sizes = folder.value(name, list[int], json.dumps(columns.get("examples")))
    state = folder.value(name, list[str], json.dumps(columns.get("status")))
    if ids is None or sizes is None or state is None or not len(ids) == len(sizes) == len(state):
        return None
    good = [place for place, status in enumerate(state) if status == "ok"]
    reasons = columns.get("reason") or [""] * len(ids)
    known = {"client_id", "examples", "status", "reason"}
    told = {key: own for key, own in columns.items() if key not in known}
    return OnClients(
        record.stage,
        record.round,
        tuple(ids[k] for k in good),
        tuple(sizes[k] for k in good),
        {key: own for key, values in told.items() if (own := _column(values, good)) is not None},
        tuple((ids[k], str(reasons[k])) for k in range(len(ids)) if state[k] != "ok"),
    )


def _column(values: object, places: Sequence[int]) -> tuple[float, ...] | None:
    """Returns a column's numbers at these places, None where it lacks one."""
    if not isinstance(values, list) or len(values) <= max(places, default=-1):
        return None
    numbers = [values[k] for k in places]
    whole = all(isinstance(own, int | float) and not isinstance(own, bool) for own in numbers)
    return tuple(float(own) for own in numbers) if whole else None

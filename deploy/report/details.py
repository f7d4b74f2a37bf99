"""What ran, to the letter: config, versions, machine, plan, data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.report.attendance import lost
from deploy.report.blocks import Block, Code, Note, Section, Table
from deploy.report.story import Story, value_of
from deploy.report.words import duration, named, number, size
from server.records import RoundRecord


def details(story: Story) -> Section:
    """Returns the section that says what ran."""
    manifest = story.manifest
    blocks: list[Block] = [Note(note, "warning") for note in story.notes]
    blocks.append(_facts("Model and data", _model(story)))
    if manifest:
        blocks.append(_facts("Machine and plan", _machine(manifest)))
        blocks.append(_facts("Versions", _plain(manifest.get("versions"))))
    else:
        blocks.append(
            Note("Not recorded yet: versions and machine; manifest.json is not there.", "missing")
        )
    if story.records:
        blocks.append(_rounds(story))
    blocks.append(Code("config.toml: running this file does the run again", story.config_text))
    return Section("details", "What exactly ran?", tuple(blocks))


def _facts(caption: str, rows: Mapping[str, str]) -> Table:
    return Table(caption, ("what", "value"), tuple(rows.items()))


def _plain(values: object) -> dict[str, str]:
    """Returns a table of a JSON file as text: nested ones and lists are cut short."""
    found = values if isinstance(values, dict) else {}
    return {str(key): _text(value) for key, value in found.items() if value is not None}


def _digests(value: object) -> str:
    """Returns the beginnings of digests: enough to tell whether two are the same."""
    found = value if isinstance(value, list) else [value]
    return ", ".join(text if len(text) <= 16 else f"{text[:16]}…" for text in map(str, found))


def _text(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def _model(story: Story) -> dict[str, str]:
    model, manifest = story.model, story.manifest
    population: Any = manifest.get("population")
    parts = ", ".join(f"{name} {count:,}" for name, count in model.parts.items())
    told = {
        "task": story.task,
        "seed": str(story.config.get("seed", 0)),
        "input": " x ".join(map(str, model.input_shape)),
        "answer": model.answer,
        "parameters": "" if model.parameters is None else f"{model.parameters:,}",
        "in its parts": parts,
        "dataset": str(story.config.get("data", {}).get("name") or model.dataset),
        "data sha256": _digests(manifest.get("data_sha256", [])),
        **{f"population: {key}": _count(value) for key, value in _plain(population).items()},
    }
    return {key: value for key, value in told.items() if value}


def _count(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else text


def _machine(manifest: Mapping[str, Any]) -> dict[str, str]:
    machine = _plain(manifest.get("machine"))
    if machine.get("memory_bytes", "").isdigit():
        machine["memory"] = size(int(machine.pop("memory_bytes")))
    keys = ("engine", "workers", "git_commit", "init")
    told = {key: _text(manifest[key]) for key in keys if manifest.get(key) is not None}
    if config := manifest.get("config_sha256"):
        told["config_sha256"] = _digests(config)
    plan = {f"plan: {key}": value for key, value in _plain(manifest.get("plan")).items()}
    return {**machine, **told, **plan}


def _rounds(story: Story) -> Table:
    metric = story.metric
    columns = ("stage", "stage's round ", "clients ", "lost ", "train loss ", f"{named(metric)} ")
    rows = tuple(_row(record, metric) for record in story.records)
    return Table("Every round", (*columns, "time ", "down ", "up "), rows, folded=True)


def _row(record: RoundRecord, metric: str) -> tuple[str, ...]:
    return (
        record.stage,
        str(record.round),
        str(record.clients_aggregated),
        str(sum(lost([record]).values())),
        number(record.train_loss),
        number(value_of(record, metric)),
        duration(record.seconds.total),
        size(record.bytes_down),
        size(record.bytes_up),
    )

"""What a run came to, as `simulate` and `submit` print it at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.cli.output import print_artefacts, print_json, print_table


def print_summary(folder: Path, as_json: bool) -> None:
    """Prints the summary of a run that is done: as JSON, or as tables."""
    summary = json.loads((folder / "summary.json").read_text())
    if as_json:
        print_json(summary)
    else:
        _print_tables(summary, folder)


def _print_tables(summary: dict[str, Any], folder: Path) -> None:
    """Prints the tables of stages, of injected faults, of artefacts."""
    print()
    columns = ("stage", "kind", "rounds ", "train loss ", "evaluation", "clients/s ", "failed ")
    print_table(columns, [_stage_cells(stage) for stage in summary["stages"]])
    if faults := [cells for stage in summary["stages"] for cells in _fault_cells(stage)]:
        print()
        from server.records import OUTCOMES

        outcomes = [f"{outcome} " for outcome in OUTCOMES]
        print_table(("stage", "fault", "injected ", *outcomes), faults)
    if summary.get("artefacts"):
        print()
        print_artefacts(summary["artefacts"])
    print(f"\n{summary['total_s']:.0f} s; run folder: {folder}")


def _stage_cells(stage: dict[str, Any]) -> tuple[object, ...]:
    loss = stage["train_loss"]
    return (
        stage["name"],
        stage["kind"],
        stage["rounds"],
        "" if loss is None else f"{loss:.4f}",
        _measured(stage),
        f"{stage['clients_per_second']:.1f}",
        stage["clients_failed"],
    )


def _fault_cells(stage: dict[str, Any]) -> list[tuple[object, ...]]:
    faults = stage.get("faults", {})
    return [(stage["name"], kind, *told.values()) for kind, told in faults.items()]


def _measured(stage: dict[str, Any]) -> str:
    from server.plain import describe_clients

    told = [f"{name} {value:.4f}" for name, value in (stage["eval"] or {}).items()]
    if stage["clients_eval"]:
        told.append(describe_clients(stage["clients_eval"]))
    if best := stage.get("best"):
        told.append(f"best in round {best['round']}")
    return ", ".join(told + (["stopped early"] if stage.get("stopped_early") else []))

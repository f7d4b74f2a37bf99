"""Which stages may follow which."""

from __future__ import annotations

from collections.abc import Sequence

from shared_models.config.stages import ExportStage, Stage, TrainStage


def order_fault(stages: Sequence[Stage]) -> str | None:
    """Returns why these stages cannot be a run, or None."""
    if not stages:
        return "stages: at least one is needed"
    return _name_fault([stage.name for stage in stages]) or _kind_fault(stages)


def _name_fault(names: Sequence[str]) -> str | None:
    if "model" in names:
        return "stages: no stage may be called 'model': model.safetensors is the end"
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"stages: the name {twice!r} is used twice"


def _kind_fault(stages: Sequence[Stage]) -> str | None:
    learning = [place for place, stage in enumerate(stages) if isinstance(stage, TrainStage)]
    exports = [place for place, stage in enumerate(stages) if isinstance(stage, ExportStage)]
    if not learning or (exports and exports[0] < learning[0]):
        return "stages: an export stage needs a train stage before it"
    if len(exports) > 1:
        return "stages: one export stage is enough: it takes several formats"
    if exports and exports[0] < len(stages) - 1:
        return "stages: the export stage comes after all that learn"
    return _first_fault(stages[learning[0]])


def _first_fault(first: Stage) -> str | None:
    if first.kind == "finetune":
        return f"stages.{first.name}: a finetune stage needs a stage that learns before it"
    given = [key for key in ("takes", "resets") if getattr(first, key, None)]
    if given:
        return f"stages.{first.name}.{given[0]}: there is no stage before it to go on from"
    return None

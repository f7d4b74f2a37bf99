"""Which stages may follow which."""

from __future__ import annotations

from collections.abc import Sequence

from shared_models.config.calibration import CalibrateStage
from shared_models.config.compression import PruneStage
from shared_models.config.stages import ExportStage, Stage, TrainStage


def order_fault(stages: Sequence[Stage], *, goes_on: bool = False) -> str | None:
    """Returns why these stages cannot be a run, or None; `goes_on`: from another run's weights."""
    if not stages:
        return "stages: at least one is needed"
    fault = _name_fault([stage.name for stage in stages]) or _kind_fault(stages)
    return fault or _first_fault(stages[0], goes_on=goes_on)


def _name_fault(names: Sequence[str]) -> str | None:
    if "model" in names:
        return "stages: no stage may be called 'model': model.safetensors is the end"
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"stages: the name {twice!r} is used twice"


def _kind_fault(stages: Sequence[Stage]) -> str | None:
    learning = [place for place, stage in enumerate(stages) if isinstance(stage, TrainStage)]
    exports = [place for place, stage in enumerate(stages) if isinstance(stage, ExportStage)]
    if not learning or not isinstance(stages[0], TrainStage):
        return f"stages: a stage of kind {stages[0].kind!r} needs a train stage before it"
    if len(exports) > 1:
        return "stages: one export stage is enough: it takes several formats"
    if exports and exports[0] < len(stages) - 1:
        return "stages: the export stage comes after all that learn"
    cuts = [place for place, stage in enumerate(stages) if isinstance(stage, PruneStage)]
    if cuts and cuts[-1] > learning[-1]:
        return (
            f"stages.{stages[cuts[-1]].name}: a stage that learns has to follow, e.g. of kind "
            "'finetune': a pruned model has to find its accuracy again"
        )
    return _pretrain_fault(stages) or _calibration_fault(stages, learning)


def _pretrain_fault(stages: Sequence[Stage]) -> str | None:
    """Returns what a stage without labels is followed by that wants a whole model, or None."""
    followed: Stage | None = None
    for stage in stages:
        if followed is not None and stage.kind not in ("train", "pretrain", "finetune"):
            return (
                f"stages.{stage.name}: wants a whole model, {followed.name!r} before it trains "
                "only an encoder; add a stage of kind 'finetune' between them"
            )
        if isinstance(stage, TrainStage):
            followed = stage if stage.kind == "pretrain" else None
    if followed is None:
        return None
    return (
        f"stages.{followed.name}: a stage of kind 'finetune' has to follow: an encoder alone "
        "answers nothing"
    )


def _calibration_fault(stages: Sequence[Stage], learning: Sequence[int]) -> str | None:
    asking = [place for place, stage in enumerate(stages) if isinstance(stage, CalibrateStage)]
    if len(asking) > 1:
        return "stages: one calibrate stage is enough: it is about the final weights"
    if not asking:
        return None
    last = stages[learning[-1]]
    if asking[0] < learning[-1]:
        return "stages: the calibrate stage comes after all that learn"
    if getattr(last, "personal", ()):
        return (
            f"stages.{last.name}.personal: contradicts the calibrate stage: the server has no such "
            "arrays, so no client has the model that would be measured"
        )
    return None


def _first_fault(first: Stage, *, goes_on: bool) -> str | None:
    if first.kind in ("distill", "finetune") and not goes_on:
        told = f"a {first.kind} stage needs a stage that learns before it, or init"
        return f"stages.{first.name}: {told}"
    if goes_on:
        return None
    given = [key for key in ("takes", "resets") if getattr(first, key, None)]
    if given:
        return f"stages.{first.name}.{given[0]}: there is no stage before it to go on from, no init"
    return None

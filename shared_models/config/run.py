"""The whole of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shared_models.config.calibration import CalibrateStage
from shared_models.config.data import Data, Evaluate
from shared_models.config.faults import Faults
from shared_models.config.order import order_fault
from shared_models.config.plan import Plan
from shared_models.config.stages import ExportStage, Stage, TrainStage
from shared_models.config.tables import Count, Name, Positive, Table
from shared_models.tasks import TASKS, no_task
from shared_models.tasks.own import is_own

# Where a run runs decides no byte of its result, and faults are mended before a run goes on:
# a run that is resumed may change these.
MACHINE_KEYS = {"init", "engine", "workers", "ray_address", "client_deadline_s", "faults"}


class Config(Table):
    """One run: what is trained, on what, in which stages."""

    name: Name = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    task: str
    """One of `wildflower models`, or `module:attribute` of your own in `module.py`."""
    init: Annotated[str, Field(min_length=1)] | None = None
    """A finished run's folder, or a .safetensors file: the first stage begins with its weights, as
    its `takes` and `resets` say. It is read where the server runs."""
    init_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Their hash, filled in when a run begins: other weights would be another run."""
    engine: Literal["inline", "ray"] = "inline"
    """`inline` trains in this process, `ray` in workers of one thread each: with equal results."""
    workers: Annotated[int, Field(ge=1, le=4096)] | None = None
    """For `ray`: how many; absent: one a physical core, on a cluster one a CPU."""
    ray_address: Annotated[str, Field(min_length=1)] | None = None
    """For `ray`: HOST:PORT of a cluster; absent: Ray is started on this machine."""
    client_deadline_s: Positive | None = None
    """For `ray`: a client that takes longer is cut off; absent: none is. A worker's first block has
    its warm-up in it, with compiled kernels up to twenty seconds."""
    server_device: Literal["cpu", "cuda"] = "cpu"
    """Where the server folds updates and steps. It decides bytes, so it is never chosen for you."""
    keep_checkpoints: Count = 2
    data: Data
    evaluate: Evaluate = Evaluate()
    plan: Plan = Plan()
    faults: Faults = Faults()
    stages: tuple[Annotated[Stage, Field(discriminator="kind")], ...]

    @field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        if task not in TASKS and not is_own(task):
            raise ValueError(f": {no_task(task)}")
        return task

    @field_validator("stages")
    @classmethod
    def _students_exist(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        for stage in stages:
            name = stage.student if isinstance(stage, TrainStage) else None
            if name is not None and name not in TASKS and not is_own(name):
                raise ValueError(f".{stage.name}.student: {no_task(name)}")
        return stages

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        if fault := order_fault(self.stages, goes_on=self.init is not None):
            raise ValueError(fault)
        if self.init is None and self.init_sha256 is not None:
            raise ValueError("init_sha256: is for init, which is missing")
        if self.export_stage is None:
            return self
        if self.evaluate.data == "none":
            raise ValueError("evaluate.data: contradicts the export stage, which needs test data")
        if fault := self.export_fault:
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _autocast_does_something(self) -> Self:
        if self.evaluate.autocast != "none" and self.plan.dtype == "float64":
            raise ValueError(
                f"evaluate.autocast: {self.evaluate.autocast!r} contradicts plan.dtype 'float64', "
                "which torch never lowers"
            )
        return self

    @model_validator(mode="after")
    def _rounds_can_be_compared(self) -> Self:
        if self.evaluate.clients_fraction > 0.0:
            return self
        for stage in self.learning_stages:
            if self.evaluate.data != "none" and not stage.personal:
                continue
            ways = "evaluate.clients_fraction"
            if stage.personal:
                ways += ": the server has no personal arrays, only clients can measure"
            else:
                ways = f"evaluate.data or {ways}"
            for key in ("early_stopping_rounds", "keep_best"):
                if getattr(stage, key):
                    raise ValueError(f"stages.{stage.name}.{key}: needs an evaluation; set {ways}")
        return self

    @model_validator(mode="after")
    def _hangs_end(self) -> Self:
        for stage in self.learning_stages:
            if (self.faults.hang or self.faults.any) and stage.round_deadline_s is None:
                raise ValueError(
                    f"stages.{stage.name}.round_deadline_s: is missing; "
                    "clients that hang (faults.hang, faults.any) are given up by it"
                )
        return self

    def identity(self) -> dict[str, Any]:
        """Returns the keys that make two runs the same run: all but those about the machine."""
        return self.model_dump(mode="json", exclude_none=True, exclude=MACHINE_KEYS)

    @property
    def learning_stages(self) -> tuple[TrainStage, ...]:
        """The stages that the server runs, in order."""
        return tuple(stage for stage in self.stages if isinstance(stage, TrainStage))

    @property
    def own_tasks(self) -> tuple[str, ...]:
        """The tasks that are the user's own, a file's: the run's, and students."""
        named = (self.task, *(stage.student for stage in self.learning_stages if stage.student))
        return tuple(name for name in dict.fromkeys(named) if is_own(name))

    @property
    def calibrate_stage(self) -> CalibrateStage | None:
        """The stage that asks clients for the ranges inside the final model, if there is one."""
        return next((stage for stage in self.stages if isinstance(stage, CalibrateStage)), None)

    @property
    def export_stage(self) -> ExportStage | None:
        """The stage that follows on the finished run folder, if there is one."""
        return next((stage for stage in self.stages if isinstance(stage, ExportStage)), None)

    @property
    def export_fault(self) -> str | None:
        """Why there is no whole model that could be exported, or None."""
        stage = self.learning_stages[-1]
        if not stage.personal:
            return None
        return (
            f"stages.{stage.name}.personal: contradicts export: the server has no such arrays; "
            "remove the export stage, or add a train stage without personal after this one"
        )

    @property
    def settled_plan(self) -> Plan:
        """The plan; where nobody measured, with a trainer that can train every stage."""
        plain = all(stage.only_descends for stage in self.learning_stages)
        plain = plain and _only_descends(self.task)
        return self.plan.settled("reused" if plain else "loop")

    def stage(self, name: str) -> TrainStage:
        """Returns a learning stage by name."""
        return next(stage for stage in self.learning_stages if stage.name == name)


def _only_descends(task: str) -> bool:
    """Whether a task's own objective is none but descent on its loss."""
    from shared_models.objectives.supervised import supervised
    from shared_models.tasks import load_task

    return load_task(task).objective is supervised

"""A run's config: TOML in, frozen values out. Wrong input is one line that names file and key.

Numbers are prefixed by where they act (`local_`, `server_`) and suffixed by their unit.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from shared_models.errors import ConfigError, did_you_mean
from shared_models.tasks import TASKS

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Positive: TypeAlias = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]

# What Flower's bundle runs when nobody gives it a config: the smallest thing that is a real run.
BUILTIN = """
name = "digits"
task = "digits-cnn"

[data]
partition = "iid"
clients = 20

[[stages]]
name = "train"
kind = "train"
rounds = 3
clients_per_round = 10
local_learning_rate = 0.1
"""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(_Table):
    """Which examples there are and who owns them."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """A dataset of `wildflower data list` or a path to an `.npz`; absent: the task's own."""
    root: str | None = None
    """A folder with files that you already have, instead of the download."""
    partition: Literal["iid", "shards", "dirichlet", "natural", "draws"] = "iid"
    clients: Count | None = None
    """How many clients; absent for `natural`, where the data says so."""
    shards_per_client: Count = 2
    """For `shards`: how many label-sorted shards each client gets."""
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = 0.5
    """For `dirichlet`: small is skewed, large is even."""
    examples_per_client: Count | None = None
    """For `draws`: how many examples each client draws for itself; clients overlap."""
    max_examples_per_client: Count | None = None
    """Each client keeps at most this many of its examples."""

    @model_validator(mode="after")
    def _clients_fit_partition(self) -> Self:
        natural = self.partition == "natural"
        if natural and self.clients is not None:
            raise ValueError("clients: contradicts partition 'natural', where the data says so")
        if (self.partition == "draws") != (self.examples_per_client is not None):
            needs = "is missing; partition 'draws' needs a number"
            told = needs if self.partition == "draws" else f"contradicts {self.partition!r}"
            raise ValueError(f"examples_per_client: {told}")
        if self.partition == "draws" and self.max_examples_per_client is not None:
            raise ValueError("max_examples_per_client: contradicts examples_per_client")
        if not natural and self.clients is None:
            raise ValueError(f"clients: is missing; partition {self.partition!r} needs a number")
        return self


class Evaluate(_Table):
    """What the server measures between rounds."""

    data: str = "test"
    """`test` (the dataset's test split), a path to an `.npz`, or `none`."""
    every: Count = 1
    """Evaluate every n rounds, and after the last."""
    clients_fraction: Fraction = 0.0
    """Share of all clients that measure the model on their own examples, each time."""
    batch_size: Count = 100
    """Small batches stay in a CPU's cache; a GPU wants thousands."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @field_validator("data")
    @classmethod
    def _data_is_known(cls, data: str) -> str:
        if data in {"test", "none"} or data.endswith(".npz"):
            return data
        raise ValueError(f": must be 'test', 'none' or a path ending in .npz, got {data!r}")


class Plan(_Table):
    """How blocks are trained; part of what makes two runs bit-equal."""

    trainer: Literal["auto", "loop", "reused", "fused", "low_rank", "vectorised"] = "auto"
    """`auto` measures the others before round 1 and keeps the fastest."""
    block_size: Count | None = None
    """Clients that are trained together; absent: chosen with the trainer."""
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    """Where clients train."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Lower precision inside the model's forward and backward pass; weights stay in `dtype`."""
    compile: bool = False
    """Use compiled kernels: for `fused` an LSTM in C, for `vectorised` the whole step. Takes one
    second (`fused`) or twenty (`vectorised`) once, and needs a compiler."""

    @property
    def is_open(self) -> bool:
        """Whether something is left to be chosen before round 1."""
        return self.trainer == "auto" or self.block_size is None

    @property
    def clients_per_block(self) -> int:
        """Returns the block size, also of a plan that nobody settled."""
        return self.block_size or 10

    def settled(self, trainer: str = "reused", block_size: int | None = None) -> Plan:
        """Returns the plan with what is open filled in: by what was measured, or by these."""
        return self.model_copy(
            update={
                "trainer": trainer if self.trainer == "auto" else self.trainer,
                "block_size": self.block_size or block_size or self.clients_per_block,
            }
        )


class TrainStage(_Table):
    """Supervised federated training."""

    name: Name = "train"
    kind: Literal["train"]
    rounds: Count
    clients_per_round: Count
    local_epochs: Count = 1
    batch_size: Count = 10
    local_learning_rate: Positive
    local_clip_norm: Positive | None = None
    """Bound on the Euclidean norm of each local gradient; absent: no clipping."""
    server_optimizer: Literal["sgd", "momentum"] = "sgd"
    server_learning_rate: Positive = 1.0
    server_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """For server_optimizer 'momentum'; 0.9 if absent."""
    max_update_norm: Positive = 1000.0
    """An update with a larger Euclidean norm is refused."""

    @model_validator(mode="before")
    @classmethod
    def _momentum_has_a_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("server_optimizer") == "momentum":
            return {"server_momentum": 0.9, **values}
        return values

    @model_validator(mode="after")
    def _momentum_fits_optimizer(self) -> Self:
        if self.server_momentum is not None and self.server_optimizer != "momentum":
            raise ValueError(
                f"server_momentum: contradicts server_optimizer {self.server_optimizer!r}"
            )
        return self


class ExportStage(_Table):
    """Quantized files for edge devices, measured against the torch model."""

    name: Name = "export"
    kind: Literal["export"] = "export"
    formats: Annotated[tuple[Literal["onnx", "tflite"], ...], Field(min_length=1)] = (
        "onnx",
        "tflite",
    )
    quantize: Annotated[tuple[Literal["fp32", "int8"], ...], Field(min_length=1)] = (
        "fp32",
        "int8",
    )
    max_accuracy_drop: Fraction = 0.01
    """The gate: a file that loses more accuracy against torch fails the run."""
    min_agreement: Fraction = 0.95
    """The gate: a file that agrees with torch on fewer test examples fails the run."""
    calibration_examples: Count = 200
    """Training examples that set the activation ranges of full int8."""
    test_examples: Count = 10_000
    """At most this many test examples are run through each file."""
    latency_runs: Count = 200


# What TOML's users call it, where pydantic says it in the words of Python.
_IN_OUR_WORDS = {
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-'",
    "string_too_short": "something",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": 'a list, like ["onnx"]',
    "too_short": "a list with something in it",
}
_T = TypeVar("_T", bound=_Table)
Stage: TypeAlias = TrainStage | ExportStage
_KINDS: dict[str, type[TrainStage | ExportStage]] = {"train": TrainStage, "export": ExportStage}


# Where a run runs decides no byte of its result: one that is resumed may change these.
MACHINE_KEYS = {"engine", "workers", "ray_address"}


class Config(_Table):
    """One run: what is trained, on what, in which stages."""

    name: Name = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    task: str
    engine: Literal["inline", "ray"] = "inline"
    """`inline` trains in this process, `ray` in workers of one thread each: with equal results."""
    workers: Annotated[int, Field(ge=1, le=4096)] | None = None
    """For `ray`: how many; absent: one a physical core, on a cluster one a CPU."""
    ray_address: Annotated[str, Field(min_length=1)] | None = None
    """For `ray`: HOST:PORT of a cluster; absent: Ray is started on this machine."""
    client_deadline_s: Positive | None = None
    """For `ray`: a client that takes longer is cut off; absent: none is. A worker's first block has
    its warm-up in it, with compiled kernels up to twenty seconds."""
    keep_checkpoints: Count = 2
    data: Data
    evaluate: Evaluate = Evaluate()
    plan: Plan = Plan()
    stages: tuple[Annotated[Stage, Field(discriminator="kind")], ...]

    @field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f": {task!r} does not exist; {did_you_mean(task, TASKS)}")
        return task

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("stages: at least one is needed")
        if "model" in names:
            raise ValueError("stages: no stage may be called 'model': model.safetensors is the end")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"stages: the name {name!r} is used twice")
        kinds = [stage.kind for stage in self.stages]
        if kinds[0] == "export":
            raise ValueError("stages: an export stage needs a train stage before it")
        if "train" in kinds[kinds.index("export") if "export" in kinds else len(kinds) :]:
            raise ValueError("stages: the export stage comes after all that learn")
        if kinds.count("export") > 1:
            raise ValueError("stages: one export stage is enough: it takes several formats")
        if "export" in kinds and self.evaluate.data == "none":
            raise ValueError("evaluate.data: contradicts the export stage, which needs test data")
        return self

    def identity(self) -> dict[str, Any]:
        """Returns the keys that make two runs the same run: all but those about the machine."""
        return self.model_dump(mode="json", exclude_none=True, exclude=MACHINE_KEYS)

    @property
    def learning_stages(self) -> tuple[TrainStage, ...]:
        """The stages that the server runs, in order."""
        return tuple(stage for stage in self.stages if isinstance(stage, TrainStage))

    @property
    def export_stage(self) -> ExportStage | None:
        """The stage that follows on the finished run folder, if there is one."""
        return next((stage for stage in self.stages if isinstance(stage, ExportStage)), None)

    def stage(self, name: str) -> TrainStage:
        """Returns a learning stage by name."""
        return next(stage for stage in self.learning_stages if stage.name == name)


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a TOML file; its stem is the run's name if it has none. Raises `ConfigError`."""
    if path.is_dir():
        path = path / "config.toml"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "run"
    return parse_config(text, source=str(path), name=name[:80], overrides=overrides)


def parse_config(
    text: str, source: str, name: str = "run", overrides: Sequence[str] = ()
) -> Config:
    """Parses TOML text; `overrides` are `key.path=value`, a stage is addressed by its name."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    for override in overrides:
        _apply(values, override)
    _make_paths_absolute(values)
    if "name" not in values:
        values["name"] = name
    return _checked(Config, values, source)


def to_toml(config: Config) -> str:
    """Returns the resolved config as TOML: defaults filled in, reading it gives an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"-s {override}: expected key=value, e.g. -s stages.train.rounds=3")
    *path, last = [part.strip() for part in key.split(".")]
    table: Any = values
    for part in path:
        table = _descend(table, part, override)
    if not isinstance(table, dict):
        raise ConfigError(f"-s {override}: {'.'.join(path)} is not a table")
    table[last] = _scalar(text.strip())


def _descend(table: Any, part: str, override: str) -> Any:
    if isinstance(table, list):
        named = {_stage_name(stage): stage for stage in table if isinstance(stage, dict)}
        if part not in named:
            raise ConfigError(f"-s {override}: no stage {part!r}; {did_you_mean(part, named)}")
        return named[part]
    if not isinstance(table, dict):
        raise ConfigError(f"-s {override}: {part!r} is inside a value, not a table")
    return table.setdefault(part, {})


def _stage_name(stage: Mapping[str, Any]) -> str:
    """Returns a stage's name; one that has none is called by its kind."""
    return str(stage.get("name", stage.get("kind", "")))


def _scalar(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, so nobody has to quote quotes in a shell


def _make_paths_absolute(values: dict[str, Any]) -> None:
    """The run folder's config must mean the same from every working directory."""
    for table, key in (("data", "root"), ("data", "name"), ("evaluate", "data")):
        own = values.get(table)
        given = own.get(key) if isinstance(own, dict) else None
        if isinstance(own, dict) and isinstance(given, str) and _is_path(key, given):
            own[key] = str(Path(given).absolute())


def _is_path(key: str, given: str) -> bool:
    return key == "root" or given.endswith(".npz")


def parse_data(values: dict[str, Any]) -> Data:
    """Returns a data table from options; raises `ConfigError` that names the option."""
    return _checked(Data, values, "options")


def parse_export(base: ExportStage, changes: dict[str, Any]) -> ExportStage:
    """Returns an export stage with some keys changed; raises `ConfigError` that names the key."""
    return _checked(ExportStage, {**base.model_dump(), **changes}, "options")


def _checked(model: type[_T], values: dict[str, Any], source: str) -> _T:
    try:
        return model.model_validate_json(_json(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_tell(error.errors(), values)}") from None


def _tell(problems: list[Any], values: dict[str, Any]) -> str:
    """Returns the first problem in words; an unknown key is told before a missing one."""
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    # What is missing may well be what was misspelt.
    others = [p for p in problems if p not in unknown and not (unknown and p["type"] == "missing")]
    told = unknown + others
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return _explain(told[0], values) + more


def _json(values: dict[str, Any]) -> str:
    # JSON mode lets strict types accept what TOML can say (a list where a tuple is meant).
    return json.dumps(values, default=str)


def _explain(problem: Any, values: Mapping[str, Any]) -> str:
    location = list(problem["loc"])
    if len(location) > 2 and location[0] == "stages":
        del location[2]  # pydantic puts the kind of the stage there
    key = _key(location, values)
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return (
            f"unknown key {key!r}; {did_you_mean(str(location[-1]), _valid_keys(location, values))}"
        )
    if kind == "missing":
        return f"key {key!r} is missing"
    if kind == "value_error":
        # Our own validators say `: message` of their field, or `field: message` of their table.
        told = str(problem["ctx"]["error"])
        return told if not key else f"{key}{'' if told.startswith(':') else '.'}{told}"
    if kind.startswith("union_tag"):
        kinds = ", ".join(_KINDS)
        return f"key {key + '.kind'!r} must be one of: {kinds}"
    message = _IN_OUR_WORDS.get(kind, problem["msg"].removeprefix("Input should be "))
    return f"key {key!r} must be {message}, got {given!r}"


def _key(location: Iterable[Any], values: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for part in location:
        if isinstance(part, int) and parts == ["stages"]:
            stage = values["stages"][part]
            name = _stage_name(stage) if isinstance(stage, Mapping) else None
            parts.append(str(name or part))
        else:
            parts.append(str(part))
    return ".".join(parts)


def _valid_keys(location: Sequence[Any], values: Mapping[str, Any]) -> Iterable[str]:
    if len(location) == 1:
        return Config.model_fields
    if location[0] == "stages":
        kind = values["stages"][location[1]]["kind"]
        return _KINDS[kind].model_fields
    tables: dict[str, type[_Table]] = {"data": Data, "evaluate": Evaluate, "plan": Plan}
    return tables[str(location[0])].model_fields

"""The stages of a run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from shared_models.config.calibration import CalibrateStage
from shared_models.config.compression import Prefixes, PruneStage
from shared_models.config.parts import (
    AggregatorName,
    LocalOptimizerName,
    ObjectiveName,
    ScalesName,
    ScheduleName,
    ServerOptimizerName,
    cohort_fault,
    combination_fault,
    distill_fault,
    number_fault,
    pretrain_fault,
    quantize_fault,
    with_defaults,
)
from shared_models.config.tables import (
    Count,
    Decay,
    Fraction,
    Name,
    NotNegative,
    Part,
    Positive,
    Table,
)

FormatName: TypeAlias = Literal["onnx", "tflite", "tflite-stream"]
Bits: TypeAlias = Annotated[int, Field(ge=2, le=8)]
QuantizeName: TypeAlias = Literal["auto", "none", "fp16", "dynamic", "int8", "int8-float"]


class TrainStage(Table):
    """Federated training, from the weights of the stage before."""

    name: Name
    """Absent: the kind."""
    kind: Literal["train", "finetune", "pretrain", "distill"]
    """`pretrain` learns the encoder from all examples of the clients, without labels. `finetune`
    goes on from another stage's weights: they must be there. `distill` trains a `student` from new
    weights, with another stage's model as its teacher."""
    rounds: Count
    clients_per_round: Count
    local_epochs: Count = 1
    batch_size: Count = 10
    objective: ObjectiveName = "fedavg"
    """What a client minimises, and what of it the server learns. For `pretrain`: `simclr`,
    `simsiam`, `denoising_autoencoder`, `masked_reconstruction` or `forecasting`."""
    proximal_mu: NotNegative | None = None
    """For `fedprox`: mu/2 times the squared distance to the server's weights is added."""
    personal_lambda: NotNegative | None = None
    """For `ditto`: how strongly a client's own model is drawn to the server's."""
    contrast_temperature: Positive | None = None
    """For `simclr`: how much the most similar ones of other examples count; T in the paper."""
    corrupted_fraction: Part | None = None
    """For `denoising_autoencoder`: the share of values that is set to zero."""
    masked_fraction: Part | None = None
    """For `masked_reconstruction`: the share of patches, or of spans of steps, that is hidden."""
    forecast_steps: Count | None = None
    """For `forecasting`: how many of a window's last readings are told."""
    adversarial_epsilon: Positive | None = None
    """For `adversarial`: how far each number of an input may be moved; images go from 0 to 1."""
    adversarial_steps: Count | None = None
    """For `adversarial`: 1 is FGSM, more is PGD from a random start; 7 if absent."""
    mixing_scale: NotNegative | None = None
    """For `pretrain`: clients that are back begin nearer to their own model, by FedEMA; tau in the
    paper, which has 0.7. Absent: all begin at the server's."""
    personal: Prefixes = ()
    """Prefixes of array names that never leave a client, e.g. `["head."]`."""
    takes: Prefixes = ()
    """Prefixes of array names that are taken over from the stages before; absent: all are that
    one of them has."""
    resets: Prefixes = ()
    """Prefixes of array names that begin anew, e.g. `["head."]` for other labels."""
    freezes: Prefixes = ()
    """Prefixes of array names that stay as they are, e.g. `["encoder."]`."""
    quantize_aware: bool = False
    """Clients train weights that stand rounding: the model computes as its quantized file would."""
    weight_bits: Bits | None = None
    activation_bits: Bits | None = None
    """For `quantize_aware`: how finely is rounded, 8 if absent. Exported files have 8 bits."""
    weight_scales: ScalesName | None = None
    """For `quantize_aware`: what shares a scale; `exported`, if absent, is what files have."""
    student: str | None = None
    """For `distill`: the task, of the same input and labels, whose model all later stages have."""
    temperature: Positive | None = None
    """For `distill`: how soft the teacher's answers are; 3 if absent."""
    alpha: Fraction | None = None
    """For `distill`: what the teacher's answers count against the labels; 0.7 if absent."""
    local_optimizer: LocalOptimizerName = "sgd"
    local_learning_rate: Positive
    local_momentum: Decay | None = None
    local_beta1: Decay | None = None
    local_beta2: Decay | None = None
    local_epsilon: Positive | None = None
    local_weight_decay: NotNegative | None = None
    local_clip_norm: Positive | None = None
    """Bound on the Euclidean norm of each local gradient; absent: no clipping."""
    local_schedule: ScheduleName = "constant"
    """How the learning rate goes down from round to round."""
    local_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    local_decay_every: Count | None = None
    local_floor: Fraction | None = None
    local_warmup_rounds: Annotated[int, Field(ge=0, lt=2**31)] = 0
    aggregator: AggregatorName = "weighted_mean"
    """How the updates of a round become one."""
    clip_norm: Positive | None = None
    """For `clipped_mean`: larger updates are scaled down to this Euclidean norm."""
    trim_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    """For `trimmed_mean`: the share of values that is dropped at each end."""
    byzantine_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    """For `krum`, `multi_krum`: the share of clients that may be malicious."""
    server_optimizer: ServerOptimizerName = "sgd"
    server_learning_rate: Positive = 1.0
    server_momentum: Decay | None = None
    server_beta1: Decay | None = None
    server_beta2: Decay | None = None
    server_epsilon: Positive | None = None
    """For `adagrad`, `adam`, `yogi`: how adaptive; tau in the paper."""
    server_schedule: ScheduleName = "constant"
    server_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    server_decay_every: Count | None = None
    server_floor: Fraction | None = None
    server_warmup_rounds: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_update_norm: Positive = 1000.0
    """An update with a larger Euclidean norm is refused."""
    min_clients: Count = 1
    """The quorum: a round with fewer usable updates does not count."""
    min_fraction: Fraction = 0.5
    """The quorum, as a share of `clients_per_round`."""
    max_attempts: Count = 3
    """So many cohorts are tried before a round below its quorum ends the run."""
    over_selection: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """Asks this many times `clients_per_round`, and takes the first that suffice."""
    round_deadline_s: Positive | None = None
    """A client that answers later does not count; on a simulated clock under `simulate`."""
    early_stopping_rounds: Count | None = None
    """The stage ends when the best evaluation is this many rounds old; absent: it never does."""
    keep_best: bool = False
    """The stage ends with the weights of its best evaluation instead of the last ones."""

    @model_validator(mode="before")
    @classmethod
    def _choices_have_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return with_defaults({"name": values.get("kind"), **values})

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        told = dict(self)
        if fault := number_fault(told) or combination_fault(told) or cohort_fault(told):
            raise ValueError(fault)
        if fault := quantize_fault(told) or distill_fault(told) or pretrain_fault(told):
            raise ValueError(fault)
        if self.min_clients > self.clients_per_round:
            raise ValueError("min_clients: is more than clients_per_round")
        if self.early_stopping_rounds is not None and self.early_stopping_rounds >= self.rounds:
            raise ValueError("early_stopping_rounds: must be less than rounds, or it never stops")
        return self

    @property
    def only_descends(self) -> bool:
        """Whether clients do nothing but descend on the task's loss, with all of the model."""
        plain = self.objective == "fedavg" and not self.quantize_aware and not self.student
        return plain and not self.personal and not self.freezes

    @property
    def needs_singles(self) -> bool:
        """Whether the aggregator needs every client's update by itself."""
        return self.aggregator not in {"weighted_mean", "clipped_mean"}


class ExportStage(Table):
    """Quantized files for edge devices, measured against the torch model."""

    name: Name = "export"
    kind: Literal["export"] = "export"
    formats: Annotated[tuple[FormatName, ...], Field(min_length=1)] = ("onnx", "tflite")
    """`tflite-stream`: one time step of a recurrent model, whose state the file keeps."""
    quantize: Annotated[tuple[QuantizeName, ...], Field(min_length=1)] = ("auto",)
    """`auto`: fp32 (`none`), and the int8 that was measured to suit such a model."""
    max_score_drop: Fraction = 0.01
    """The gate: a file whose score (accuracy, mean IoU, R^2) loses more against torch fails."""
    min_agreement: Fraction = 0.95
    """The gate: a file that agrees with torch on fewer test examples fails the run."""
    calibration_examples: Count = 200
    """Training examples that set the activation ranges of full int8."""
    test_examples: Count = 10_000
    """At most this many test examples are run through each file."""
    latency_runs: Annotated[int, Field(ge=1, le=100_000)] = 200


Stage: TypeAlias = TrainStage | PruneStage | CalibrateStage | ExportStage
KINDS: Mapping[str, type[Stage]] = MappingProxyType(
    {
        "train": TrainStage,
        "finetune": TrainStage,
        "pretrain": TrainStage,
        "distill": TrainStage,
        "prune": PruneStage,
        "calibrate": CalibrateStage,
        "export": ExportStage,
    }
)


def stage_name(stage: Mapping[str, Any]) -> str:
    """Returns a stage's name in a file; one that has none is called by its kind."""
    return str(stage.get("name", stage.get("kind", "")))

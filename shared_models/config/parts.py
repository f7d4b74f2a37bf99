"""The parts that a training stage is composed of: which there are, their numbers, what clashes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from shared_models.shares import krum_fault, trim_fault

PretextName: TypeAlias = Literal[
    "simclr", "simsiam", "denoising_autoencoder", "masked_reconstruction", "forecasting"
]
ObjectiveName: TypeAlias = (
    Literal["fedavg", "fedprox", "scaffold", "fednova", "ditto", "adversarial"] | PretextName
)
AggregatorName: TypeAlias = Literal[
    "weighted_mean",
    "clipped_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
]
ServerOptimizerName: TypeAlias = Literal["sgd", "momentum", "adagrad", "adam", "yogi"]
LocalOptimizerName: TypeAlias = Literal["sgd", "momentum", "adam", "adamw"]
ScheduleName: TypeAlias = Literal["constant", "exponential", "step", "cosine"]
ScalesName: TypeAlias = Literal["exported", "tensor", "channel"]

Numbers: TypeAlias = Mapping[str, float | int | None]
"""A choice's own keys with their defaults; None: the user has to say."""

_ADAPTIVE: Numbers = {"server_beta1": 0.9, "server_beta2": 0.99, "server_epsilon": 1e-3}
_ADAM: Numbers = {"local_beta1": 0.9, "local_beta2": 0.999, "local_epsilon": 1e-8}
_BYZANTINE: Numbers = {"byzantine_fraction": 0.2}


def _schedules(side: str) -> Mapping[str, Numbers]:
    return {
        "constant": {},
        "exponential": {f"{side}_decay": 0.99},
        "step": {f"{side}_decay": 0.1, f"{side}_decay_every": None},
        "cosine": {f"{side}_floor": 0.0},
    }


CHOICES: Mapping[str, Mapping[str, Numbers]] = MappingProxyType(
    {
        "objective": {
            "fedavg": {},
            "fedprox": {"proximal_mu": 0.01},
            "scaffold": {},
            "fednova": {},
            "ditto": {"personal_lambda": 0.1},
            "adversarial": {"adversarial_epsilon": None, "adversarial_steps": 7},
            "simclr": {"contrast_temperature": 0.2},
            "simsiam": {},
            "denoising_autoencoder": {"corrupted_fraction": 0.3},
            "masked_reconstruction": {"masked_fraction": 0.5},
            "forecasting": {"forecast_steps": 10},
        },
        "aggregator": {
            "weighted_mean": {},
            "clipped_mean": {"clip_norm": None},
            "median": {},
            "trimmed_mean": {"trim_fraction": 0.2},
            "krum": _BYZANTINE,
            "multi_krum": _BYZANTINE,
            "geometric_median": {},
        },
        "server_optimizer": {
            "sgd": {},
            "momentum": {"server_momentum": 0.9},
            "adagrad": {"server_beta1": 0.0, "server_epsilon": 1e-3},
            "adam": _ADAPTIVE,
            "yogi": _ADAPTIVE,
        },
        "local_optimizer": {
            "sgd": {},
            "momentum": {"local_momentum": 0.9},
            "adam": _ADAM,
            "adamw": {**_ADAM, "local_weight_decay": 0.01},
        },
        "server_schedule": _schedules("server"),
        "local_schedule": _schedules("local"),
    }
)


ROUNDING: Mapping[str, Any] = MappingProxyType(
    {"weight_bits": 8, "activation_bits": 8, "weight_scales": "exported"}
)
PRETEXTS: frozenset[str] = frozenset(get_args(PretextName))
TEACHING: Mapping[str, Any] = MappingProxyType({"temperature": 3.0, "alpha": 0.7})


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stage's values with the defaults of the choices that it makes."""
    filled: dict[str, Any] = dict(ROUNDING) if values.get("quantize_aware") is True else {}
    filled |= TEACHING if values.get("kind") == "distill" else {}
    filled |= {"objective": "simclr"} if values.get("kind") == "pretrain" else {}
    for part, choices in CHOICES.items():
        chosen = str(values.get(part, filled.get(part, next(iter(choices)))))
        numbers = choices.get(chosen, {})
        filled |= {key: value for key, value in numbers.items() if value is not None}
    return {**filled, **values}


def orphans(part: str, before: object, now: object) -> set[str]:
    """Returns the numbers that belong to one choice of a part and not to another.

    >>> sorted(orphans("local_optimizer", "adamw", "adam"))
    ['local_weight_decay']
    """
    choices = CHOICES.get(part, {})
    return set(choices.get(str(before), {})) - set(choices.get(str(now), {}))


def number_fault(told: Mapping[str, Any]) -> str | None:
    """Returns which number is missing, or belongs to a choice that was not made."""
    for part, choices in CHOICES.items():
        own = choices[told[part]]
        for key in sorted({key for numbers in choices.values() for key in numbers}):
            if key in own and told[key] is None:
                return f"{key}: is missing; {part} {told[part]!r} needs a number"
            if key not in own and told[key] is not None:
                return f"{key}: contradicts {part} {told[part]!r}"
    return None


def quantize_fault(told: Mapping[str, Any]) -> str | None:
    """Returns which key says how to round where nothing is rounded, or None."""
    if told["quantize_aware"]:
        return None
    given = next((key for key in ROUNDING if told[key] is not None), None)
    return given and f"{given}: is for quantize_aware = true"


def distill_fault(told: Mapping[str, Any]) -> str | None:
    """Returns what is missing where a student is taught, or is there where none is, or None."""
    if told["kind"] != "distill":
        given = next((key for key in ("student", *TEACHING) if told[key] is not None), None)
        return given and f"{given}: is for stages of kind 'distill'"
    if told["student"] is None:
        return "student: is missing; it names a task of the same input and labels"
    for key in ("takes", "resets"):
        if told[key]:
            return f"{key}: contradicts kind 'distill', whose student begins with new weights"
    if told["objective"] != "fedavg" or told["quantize_aware"]:
        key = "quantize_aware" if told["quantize_aware"] else "objective"
        return f"{key}: contradicts kind 'distill', which has a loss of its own; finetune after it"
    return None


def pretrain_fault(told: Mapping[str, Any]) -> str | None:
    """Returns what needs labels where there are none, or needs none where there are, or None."""
    objective, kind = told["objective"], told["kind"]
    if kind != "pretrain":
        if told["mixing_scale"] is not None:
            return "mixing_scale: is for stages of kind 'pretrain'"
        if objective in PRETEXTS:
            return f"objective: {objective!r} is for stages of kind 'pretrain'"
        return None
    if objective not in PRETEXTS:
        return f"objective: {objective!r} needs labels; kind 'pretrain' has {sorted(PRETEXTS)}"
    return _encoder_fault(told)


def _encoder_fault(told: Mapping[str, Any]) -> str | None:
    """Returns why a stage without labels would leave no better encoder, or None."""
    for key in ("personal", "quantize_aware"):
        if told[key]:
            return f"{key}: contradicts kind 'pretrain', whose model is not the one that is used"
    if frozen := next((own for own in told["freezes"] if "encoder.".startswith(own)), None):
        return f"freezes: {frozen!r} leaves nothing to pretrain: the encoder is what is learnt"
    if told["objective"] == "simclr" and told["batch_size"] == 1:
        return "batch_size: 'simclr' tells an example from others of its batch: 2 at least"
    return None


def cohort_fault(told: Mapping[str, Any]) -> str | None:
    """Returns why a round, whole as it may be, is too small for the aggregator, or None."""
    clients, aggregator, fault = told["clients_per_round"], told["aggregator"], None
    if aggregator in {"krum", "multi_krum"}:
        fault = krum_fault(clients, told["byzantine_fraction"])
    elif aggregator == "trimmed_mean":
        fault = trim_fault(clients, told["trim_fraction"])
    return fault and f"clients_per_round: {fault}"


def combination_fault(told: Mapping[str, Any]) -> str | None:
    """Returns why the parts make no sense together, or None."""
    objective, aggregator = told["objective"], told["aggregator"]
    optimizer = told["local_optimizer"]
    if objective in {"scaffold", "fednova"} and aggregator != "weighted_mean":
        why = {
            "scaffold": "its control variates are means over clients",
            "fednova": "its steps are normalised by a mean over clients",
        }[objective]
        return f"aggregator: {aggregator!r} contradicts objective {objective!r}: {why}"
    if objective == "scaffold" and (optimizer != "sgd" or told["local_clip_norm"] is not None):
        return (
            "objective: 'scaffold' reads the mean gradient off the way that plain SGD went; "
            "use local_optimizer 'sgd' without local_clip_norm"
        )
    if objective == "fednova" and optimizer not in {"sgd", "momentum"}:
        return f"objective: 'fednova' has no normalisation for local_optimizer {optimizer!r}"
    if objective == "ditto" and told["personal"]:
        return "personal: contradicts objective 'ditto', whose clients keep a whole model each"
    return None

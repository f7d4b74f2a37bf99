"""The parts of a stage on the server's side, as its config asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.aggregators import Aggregator
from server.aggregators.geometric_median import geometric_median
from server.aggregators.krum import krum, multi_krum
from server.aggregators.median import median
from server.aggregators.trimmed_mean import trimmed_mean
from server.aggregators.weighted_mean import weighted_mean
from server.optimizers.adagrad import adagrad
from server.optimizers.adam import adam
from server.optimizers.yogi import yogi
from shared_models.arrays import Role
from shared_models.config import TrainStage
from shared_models.errors import InputError
from shared_models.gradients import by_autograd
from shared_models.objectives import Ground, Objective
from shared_models.objectives.choice import objective_of
from shared_models.optimizers import Optimizer
from shared_models.optimizers.momentum import momentum
from shared_models.optimizers.sgd import sgd
from shared_models.schedules import Schedule, schedule_of
from shared_models.task import Task


@dataclass(frozen=True)
class Parts:
    """What makes one aggregate of a round's updates, and a step of it."""

    aggregator: Aggregator
    optimizer: Optimizer
    schedule: Schedule
    objective: Objective


def parts_of(stage: TrainStage, task: Task, roles: Mapping[str, Role]) -> Parts:
    """Returns a stage's parts."""
    # The server never trains: any optimiser will do for its half of the objective.
    ground = Ground(task, sgd(1.0), by_autograd, roles)
    return Parts(
        aggregator_of(stage),
        server_optimizer(stage),
        schedule_of(stage, "server"),
        objective_of(stage, task)(ground),
    )


def aggregator_of(stage: TrainStage) -> Aggregator:
    """Returns what makes one update of many."""
    malicious = stage.byzantine_fraction or 0.0
    made: dict[str, Callable[[], Aggregator]] = {
        "weighted_mean": weighted_mean,
        "clipped_mean": weighted_mean,  # each update is clipped before its block is summed
        "median": median,
        "trimmed_mean": lambda: trimmed_mean(stage.trim_fraction or 0.0),
        "krum": lambda: krum(malicious),
        "multi_krum": lambda: multi_krum(malicious),
        "geometric_median": geometric_median,
    }
    return made[stage.aggregator]()


def check_cohort(stage: TrainStage, clients: int) -> None:
    """Raises `InputError` when a whole round of this population cannot reach its quorum.

    That is `min_clients`, or what the aggregator needs.
    """
    if stage.min_clients > clients:
        raise InputError(
            f"stages.{stage.name}.min_clients: is {stage.min_clients}, "
            f"the population has {clients} clients"
        )
    target = min(stage.clients_per_round, clients)
    if fault := aggregator_of(stage).fault(target):
        raise InputError(f"stage {stage.name!r}: {fault}; the population has {clients} clients")


def server_optimizer(stage: TrainStage) -> Optimizer:
    """Returns the optimiser that steps the server's model, fed with `-mean(delta)`."""
    rate, beta1, beta2 = stage.server_learning_rate, stage.server_beta1, stage.server_beta2
    tau = stage.server_epsilon or 0.0
    made: dict[str, Callable[[], Optimizer]] = {
        "sgd": lambda: sgd(rate),
        "momentum": lambda: momentum(rate, stage.server_momentum or 0.0),
        "adagrad": lambda: adagrad(rate, beta1 or 0.0, tau),
        "adam": lambda: adam(rate, beta1 or 0.0, beta2 or 0.0, tau),
        "yogi": lambda: yogi(rate, beta1 or 0.0, beta2 or 0.0, tau),
    }
    return made[stage.server_optimizer]()

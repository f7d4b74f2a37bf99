"""What one node hosts: its clients, their data, and how a stage trains them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clients.calibration import BlockCalibrator, Calibration, block_calibrator
from clients.evaluation import BlockEvaluator, block_evaluator
from clients.faults import with_faults
from clients.hosting import Keeping
from clients.partitions import Indices, Partition, partition
from clients.parts import local_optimizer, transforms_of
from clients.trainers import make_trainer
from clients.training import BlockTrainer, ClientData, DataOf, Training
from shared_models.arrays import roles_of
from shared_models.config import Config, Plan, TrainStage
from shared_models.datasets.dataset import Dataset
from shared_models.datasets.load import load_task_data
from shared_models.errors import InputError
from shared_models.labelled import has_label, labelled, labelled_count
from shared_models.messages import Hello
from shared_models.objectives.choice import objective_of
from shared_models.schedules import schedule_of
from shared_models.stage_task import reads_labels, stage_task
from shared_models.task import Task
from shared_models.tasks import load_task
from shared_models.versions import versions


@dataclass(frozen=True)
class Host:
    """A node's clients; `shared` is a simulation worker, which can train any client there is.

    `keeping` is where a device's own clients keep what they keep from round to round.
    """

    config: Config
    task: Task
    dataset: Dataset
    partition: Partition
    client_ids: tuple[int, ...]
    shared: bool
    keeping: Keeping | None = None

    def hello(self) -> Hello:
        """Returns the node's answer to "who are you"."""
        return Hello(
            self.client_ids,
            self.examples(self.client_ids),
            self.shared,
            self.dataset.digest(),
            versions(),
            self.keeping is not None,
            self.labels(self.client_ids) if self._some_lack_labels else (),
        )

    def examples(self, client_ids: Sequence[int]) -> tuple[int, ...]:
        """Returns how many examples each of these clients owns."""
        places = np.searchsorted(self.partition.client_ids, np.asarray(client_ids))
        return tuple(self.partition.sizes()[places].tolist())

    def labels(self, client_ids: Sequence[int]) -> tuple[int, ...]:
        """Returns how many examples with a label each of these clients owns."""
        if not self._some_lack_labels:
            return self.examples(client_ids)
        return tuple(len(self._with_labels(client_id)) for client_id in client_ids)

    @functools.cached_property
    def _some_lack_labels(self) -> bool:
        return not has_label(self.dataset.train.y).all()

    def _with_labels(self, client_id: int) -> Indices:
        own = self.partition.indices(client_id)
        return own[has_label(self.dataset.train.y[own])] if self._some_lack_labels else own

    def part(self, place: int, places: int) -> Host:
        """Returns the host of every `places`-th client: one of `places` nodes."""
        return replace(self, client_ids=self.client_ids[place::places], shared=False)

    def data_of(self, client_id: int) -> ClientData:
        """Returns one client's examples as model input."""
        return self._data_at(self.partition.indices(client_id))

    def labelled_of(self, client_id: int) -> ClientData:
        """Returns those of one client's examples that have labels, maybe none, as model input."""
        own, fraction = self._with_labels(client_id), self.config.data.labelled_fraction
        return self._data_at(own[labelled(fraction, self.config.seed, client_id, len(own))])

    def data_for(self, stage_name: str) -> DataOf:
        """Returns what gives the examples that clients have for a learning stage."""
        reads = self._leaves_some_out(self.config.stage(stage_name))
        return self.labelled_of if reads else self.data_of

    def taking_part(self, stage: TrainStage) -> tuple[int, ...]:
        """Returns the ids of the clients that have examples for a stage."""
        if not self._leaves_some_out(stage):
            return self.client_ids
        fraction, seed = self.config.data.labelled_fraction, self.config.seed
        pairs = zip(self.client_ids, self.labels(self.client_ids), strict=True)
        return tuple(k for k, own in pairs if labelled_count(fraction, seed, k, own))

    def _leaves_some_out(self, stage: TrainStage) -> bool:
        """Whether a stage trains on labelled examples alone, and there may be others."""
        some = self.config.data.labelled_fraction < 1.0 or self._some_lack_labels
        return some and reads_labels(self.config, stage)

    def _data_at(self, own: Indices) -> ClientData:
        split = self.dataset.train
        return ClientData(self.task.input.prepare(split.x[own]), split.y[own])

    def task_of(self, stage_name: str) -> Task:
        """Returns what a stage trains: another model than before, once one was pruned or taught."""
        return stage_task(self.config, stage_name)

    def local_factor(self, stage_name: str, number: int) -> float:
        """Returns what the schedule makes of the learning rate in a round."""
        return schedule_of(self.config.stage(stage_name), "local")(number)

    def training(self, stage_name: str, factor: float = 1.0) -> Training:
        """Returns how the clients of a stage train, their learning rate scaled by `factor`.

        Raises `InputError` when the plan's device is not there.
        """
        stage, plan = self.config.stage(stage_name), self.config.settled_plan
        task = self.task_of(stage_name)
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise InputError("plan.device: 'cuda' is not available on this machine; use 'cpu'")
        return Training(
            task=task,
            make_objective=objective_of(stage, task),
            optimizer=local_optimizer(stage, factor),
            roles=roles_of(task.model(), stage.personal, stage.freezes),
            seed=self.config.seed,
            epochs=stage.local_epochs,
            batch_size=stage.batch_size,
            max_update_norm=stage.max_update_norm,
            dtype=_dtype(plan),
            device=torch.device(plan.device),
            autocast=None if plan.autocast == "none" else getattr(torch, plan.autocast),
            compiled=plan.compile,
            singles=stage.needs_singles,
            transforms=transforms_of(stage),
            one_rate=stage.local_schedule == "constant" and not stage.local_warmup_rounds,
        )

    def trainer(self, stage_name: str, factor: float = 1.0) -> BlockTrainer:
        """Returns what trains blocks of a stage, as the plan says."""
        training, faults = self.training(stage_name, factor), self.config.faults
        make = functools.partial(make_trainer, self.config.settled_plan.trainer)
        return with_faults(faults, training, make) if faults.there_are_some else make(training)

    def evaluator(self, stage_name: str) -> BlockEvaluator:
        """Returns what measures the model on each client's own examples."""
        return block_evaluator(self.training(stage_name), self.config.evaluate.batch_size)

    def calibrator(self, stage_name: str) -> BlockCalibrator:
        """Returns what measures the ranges inside the model; `InputError` for no such stage."""
        stage = self.config.calibrate_stage
        if stage is None or stage.name != stage_name:
            raise InputError(f"there is no calibrate stage {stage_name!r}")
        batch_size = self.config.evaluate.batch_size
        return block_calibrator(
            Calibration(self.task_of(stage_name), stage, self.config.seed, batch_size)
        )


def _dtype(plan: Plan) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, plan.dtype)
    return dtype


def open_host(config: Config) -> Host:
    """Loads the population's data, for a node that may train any of its clients."""
    task = load_task(config.task)
    dataset = load_task_data(task, config.data.name, config.data.root)
    whole = partition(dataset.train, config.data, config.seed)
    ids = tuple(whole.client_ids.tolist())
    return Host(config, task, dataset, whole, ids, shared=True)

"""From single updates to a partial: each is transformed, checked, then added up or stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from clients.kernels.layout import Columns
from clients.training import Member, Trained, Training, accumulate, empty_sums, refused
from shared_models.arrays import Arrays
from shared_models.checks import check_metrics, check_state, check_update
from shared_models.errors import UpdateError
from shared_models.messages import BlockRequest
from shared_models.objectives import Broadcast, Objective, Terms
from shared_models.partial import ClientState, Partial, Row, Sum

_AS_THEY_ARE = Columns()


class Gathering:
    """The good updates of a block so far. `columns` of the arrays are in the order of memory."""

    def __init__(
        self,
        training: Training,
        objective: Objective,
        server: Broadcast,
        request: BlockRequest,
        columns: Columns = _AS_THEY_ARE,
    ) -> None:
        self._training, self._objective, self._server = training, objective, server
        self._request, self._columns = request, columns
        self._sums = {} if training.singles else empty_sums(objective, training, server.params)
        self._terms = _terms(training, server)
        self._fresh = objective.init_state(server.params)
        self._singles: list[Mapping[str, Arrays]] = []
        self._states: dict[int, ClientState] = {}

    def take(self, member: Member, trained: Trained) -> Row:
        """Adds one client's update, unless it is unfit; returns what became of it."""
        examples = len(member.data.y)
        sums = trained.sums
        try:
            for transform in self._training.transforms:
                sums = transform(self._request, member.client_id, sums)
            trained = trained._replace(sums=sums)
            self._check(trained, examples)
        except UpdateError as error:
            return refused(member.client_id, examples, str(error))
        self._add(member, examples, trained)
        return Row(member.client_id, examples, trained.metrics)

    def partial(self, rows: Sequence[Row]) -> Partial:
        """Returns what was gathered; `rows` tell of all clients, in the order of `take`."""
        sums = {
            name: Sum(self._restored(name, s.arrays), s.weight) for name, s in self._sums.items()
        }
        singles = {
            name: self._stacked(name) for name in self._objective.sums if self._training.singles
        }
        return Partial(sums, tuple(rows), singles, self._states, self._request.about)

    def _check(self, trained: Trained, examples: int) -> None:
        training, objective, params = self._training, self._objective, self._server.params
        norm = training.max_update_norm
        check_update(trained.sums, objective.sums, params, training.roles, norm)
        alone = {name: Sum(arrays, 1.0) for name, arrays in trained.sums.items()}
        objective.check(alone, (examples,), self._terms)
        check_metrics(trained.metrics)
        if objective.keeps_state:
            check_state(trained.state, self._fresh)

    def _add(self, member: Member, examples: int, trained: Trained) -> None:
        if self._objective.keeps_state:
            self._states[member.client_id] = trained.state
        if self._training.singles:
            # A trainer may reuse the memory for the next client.
            copies = {
                name: {key: tensor.clone() for key, tensor in self._restored(name, own).items()}
                for name, own in trained.sums.items()
            }
            self._singles.append(copies)
            return
        for name, spec in self._objective.sums.items():
            weight = spec.weigh(examples)
            self._sums[name] = accumulate(self._sums[name], trained.sums[name], weight)

    def _restored(self, name: str, arrays: Arrays) -> Arrays:
        return self._columns.restored(arrays) if name == "delta" else arrays

    def _stacked(self, name: str) -> Arrays:
        like = self._objective.sums[name].like(self._server.params, self._training.roles)
        empty = {key: tensor.new_empty((0, *tensor.shape)) for key, tensor in like.items()}
        if not self._singles:
            return empty
        return {key: torch.stack([own[name][key] for own in self._singles]) for key in like}


def _terms(training: Training, server: Broadcast) -> Terms:
    return Terms(
        training.epochs,
        training.batch_size,
        training.optimizer.plain_rate or 0.0,
        training.max_update_norm,
        server.extras,
    )

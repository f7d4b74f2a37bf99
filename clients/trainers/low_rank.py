"""A block of clients that share the server's weights: local models as low-rank changes.

With plain descent a dense layer's weights after some steps are `W_k = W - rate * D_k.T @ X_k`,
where the rows of `X_k` are the inputs that the layer has seen and those of `D_k` the gradients by
its outputs. While a client has seen few examples (r rows), that product need not be written out:

    forward    x W_k.T = x W.T - rate * (x X_k.T) D_k
    backward   d W_k   = d W   - rate * (d D_k.T) X_k
    sum        sum_k n_k (W_k - W) = -rate * [n_1 D_1; n_2 D_2; ...].T @ [X_1; X_2; ...]

The large products have the server's weights on one side, so that one matrix product serves the
whole block at the full speed of the processor, and no client's weights are ever stored. The small
ones cost r (in + out) instead of in * out. It pays while r is below about `in * out / (in + out)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clients.gathering import Gathering
from clients.kernels.chain import chain_of
from clients.kernels.products import times
from clients.trainers.fused import plain_rate
from clients.trainers.together import together
from clients.training import (
    BlockTrainer,
    ClientData,
    Member,
    Trained,
    Training,
    Unfit,
    order_of,
    refused,
)
from shared_models.arrays import Arrays
from shared_models.checks import check_metrics, check_update
from shared_models.errors import UpdateError
from shared_models.gradients import by_autograd
from shared_models.messages import BlockRequest
from shared_models.objectives import Broadcast
from shared_models.partial import Partial, Row, Sum

_CACHED = 25  # clients whose examples stay in a core's share of the cache


@dataclass(frozen=True)
class DenseLayer:
    """A dense layer of the server's: the names of its arrays, and whether ReLU follows."""

    weight: str
    bias: str
    relu: bool


@dataclass(frozen=True)
class Seen:
    """What the block's clients have seen of one layer: its inputs, and gradients by its outputs.

    `inputs (clients, rows, in)` and `slopes (out, clients, rows)` are filled from the front; slopes
    lie as their large product at the end wants them. `bias (clients, 1, out)` is each client's own.
    """

    inputs: Tensor
    slopes: Tensor
    bias: Tensor

    def slopes_of(self, rows: slice) -> Tensor:
        """Returns the slopes of some rows, `(clients, rows, out)`, a view."""
        return self.slopes[:, :, rows].permute(1, 2, 0)


@dataclass(frozen=True)
class Schedule:
    """A bucket's batches, one after another: `(clients, rows, ...)`, padded at a batch's end.

    `share` is one over the size of the row's batch, and 0 for padding: the row's share in the
    batch's mean loss.
    """

    x: Tensor
    y: Tensor
    share: Tensor
    batch: int


@dataclass(frozen=True)
class Block:
    """A block in training: the server's layers, and what each client has seen of them.

    `first` is the first layer's shared product: what that layer will see is known.
    """

    layers: Sequence[DenseLayer]
    server: Arrays
    seen: Sequence[Seen]
    first: Tensor
    rate: float


def low_rank(training: Training) -> BlockTrainer:
    """Returns the trainer; `Unfit` unless the task is plain descent on a chain of dense layers."""
    objective = training.objective(by_autograd)
    rate = plain_rate(training, objective)
    layers = _dense_layers(training)

    def bucket_of(data: ClientData) -> tuple[int, ...]:
        return (math.ceil(len(data.y) / training.batch_size), *data.x.shape[1:])

    @torch.no_grad()
    def train_bucket(
        request: BlockRequest, server: Broadcast, members: Sequence[Member]
    ) -> Partial:
        schedule = _schedule(training, members)
        block = _begin(layers, server.params, schedule, rate)
        starts = range(0, schedule.x.shape[1], schedule.batch)
        losses = [_step(block, schedule, start) for start in starts]
        loss = torch.stack(losses).sum(0) / training.epochs
        update = _Update(block)

        def trained(place: int) -> Trained:
            metrics = {"loss": float(loss[place]) / len(members[place].data.y)}
            return Trained({"delta": update.of(place), "stats": {}}, metrics)

        if not training.summed_as_they_are:
            gathering = Gathering(training, objective, server, request)
            return gathering.partial(
                [gathering.take(member, trained(place)) for place, member in enumerate(members)]
            )

        def row_of(place: int, member: Member) -> Row:
            examples = len(member.data.y)
            metrics = {"loss": float(loss[place]) / examples}
            try:
                check_metrics(metrics)
                if not update.norm_bound[place] <= training.max_update_norm:
                    norm = training.max_update_norm
                    sums = trained(place).sums
                    check_update(sums, objective.sums, server.params, training.roles, norm)
            except UpdateError as error:
                return refused(member.client_id, examples, str(error))
            return Row(member.client_id, examples, metrics)

        return update.partial([row_of(place, member) for place, member in enumerate(members)])

    most = _CACHED if training.device.type == "cpu" else None
    return together(training, objective, bucket_of, train_bucket, most)


def _dense_layers(training: Training) -> tuple[DenseLayer, ...]:
    links = list(chain_of(training.task.make_model().train()))
    if links and isinstance(links[0].module, nn.Flatten):
        links = links[1:]
    layers: list[DenseLayer] = []
    for link in links:
        if isinstance(link.module, nn.Linear) and link.module.bias is not None:
            layers.append(DenseLayer(f"{link.name}.weight", f"{link.name}.bias", relu=False))
        elif isinstance(link.module, nn.ReLU) and layers and not layers[-1].relu:
            layers[-1] = DenseLayer(layers[-1].weight, layers[-1].bias, relu=True)
        else:
            raise Unfit(f"layer {link.name} ({type(link.module).__name__}) is not dense")
    if not layers:
        raise Unfit("it has no dense layer")
    return tuple(layers)


def _schedule(training: Training, members: Sequence[Member]) -> Schedule:
    sizes = [len(member.data.y) for member in members]
    batch = min(training.batch_size, max(sizes))
    epoch = math.ceil(max(sizes) / batch) * batch
    shape = (len(members), training.epochs * epoch)
    new = torch.empty if min(sizes) == epoch else torch.zeros  # zeros are padding
    x = new(*shape, members[0].data.x[0].size, dtype=training.dtype)
    y, share = new(shape, dtype=torch.int64), new(*shape, 1, dtype=training.dtype)
    for place, member in enumerate(members):
        examples, labels = torch.from_numpy(member.data.x).flatten(1).to(x.dtype), member.data.y
        order = order_of(training, member.key)
        for start in range(0, shape[1], epoch):
            shuffled = torch.from_numpy(order.permutation(len(labels)))
            own = slice(start, start + len(labels))
            torch.index_select(examples, 0, shuffled, out=x[place, own])
            y[place, own] = torch.from_numpy(labels)[shuffled]
            share[place, own] = 1 / batch
            if rest := len(labels) % batch:
                share[place, own.stop - rest : own.stop] = 1 / rest
    device = training.device
    return Schedule(x.to(device), y.to(device), share.to(device), batch)


def _begin(layers: Sequence[DenseLayer], server: Arrays, schedule: Schedule, rate: float) -> Block:
    clients, rows, _ = schedule.x.shape
    seen: list[Seen] = []
    for layer in layers:
        outs, ins = server[layer.weight].shape
        inputs = schedule.x.new_empty(clients, rows, ins) if seen else schedule.x
        bias = server[layer.bias].expand(clients, 1, outs).clone()
        seen.append(Seen(inputs, inputs.new_empty(outs, clients, rows), bias))
    return Block(layers, server, seen, _shared(schedule.x, server[layers[0].weight]), rate)


def _step(block: Block, schedule: Schedule, start: int) -> Tensor:
    """Takes one step for every client; returns each one's loss, summed over its batch."""
    past, rows = slice(0, start), slice(start, start + schedule.batch)
    signals = [schedule.x[:, rows]]
    for number, (layer, own) in enumerate(zip(block.layers, block.seen, strict=True)):
        if number:
            own.inputs[:, rows] = signals[-1]
            signal = _shared(signals[-1], block.server[layer.weight]).add_(own.bias)
        else:
            signal = block.first[:, rows] + own.bias
        _correct(signal, signals[-1], own.inputs[:, past], own.slopes_of(past), block.rate)
        signals.append(signal.relu_() if layer.relu else signal)
    loss, slope = _cross_entropy(signals[-1], schedule.y[:, rows], schedule.share[:, rows])
    for number in reversed(range(len(block.layers))):
        layer, own = block.layers[number], block.seen[number]
        if layer.relu:
            slope = torch.ops.aten.threshold_backward.default(slope, signals[number + 1], 0)
        own.slopes_of(rows).copy_(slope)
        own.bias.sub_(slope.sum(1, keepdim=True), alpha=block.rate)
        if number:
            below = _shared(slope, block.server[layer.weight].t())
            _correct(below, slope, own.slopes_of(past), own.inputs[:, past], block.rate)
            slope = below
    return loss


def _shared(x: Tensor, weight: Tensor) -> Tensor:
    """Returns `x @ weight.T` for all clients in one product."""
    return times(x.reshape(-1, x.shape[2]), weight).view(*x.shape[:2], -1)


def _correct(out: Tensor, x: Tensor, left: Tensor, right: Tensor, rate: float) -> None:
    """Adds what the client's own steps changed: `out -= rate * (x left.T) right`."""
    if left.shape[1]:
        out.baddbmm_(torch.bmm(x, left.transpose(1, 2)), right, alpha=-rate)


def _cross_entropy(logits: Tensor, labels: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each client's loss, summed over its batch, and the gradient of its mean."""
    log_p = torch.log_softmax(logits, dim=2)
    index = labels.unsqueeze(2)
    loss = -(log_p.gather(2, index) * (share > 0)).sum((1, 2))
    slope = log_p.exp_()
    slope.scatter_add_(2, index, slope.new_full((), -1.0).expand_as(index))
    return loss, slope.mul_(share)


class _Update:
    """The block's updates, written out only where somebody needs them."""

    def __init__(self, block: Block) -> None:
        self._block = block
        layers, server, seen, rate = block.layers, block.server, block.seen, block.rate
        norms = [
            torch.linalg.vector_norm(own.inputs, dim=(1, 2))
            * torch.linalg.vector_norm(torch.linalg.vector_norm(own.slopes, dim=2), dim=0)
            * rate
            for own in seen
        ]
        shifts = [
            torch.linalg.vector_norm(own.bias - server[layer.bias], dim=(1, 2))
            for layer, own in zip(layers, seen, strict=True)
        ]
        # |D.T X| <= |D| |X| (Frobenius): enough to let nearly every client pass.
        self.norm_bound = torch.linalg.vector_norm(torch.stack(norms + shifts), dim=0).tolist()

    def of(self, place: int) -> Arrays:
        """Returns one client's delta."""
        return self.total([place], [1.0])

    def partial(self, rows: Sequence[Row]) -> Partial:
        """Returns the sum of the updates whose rows are good."""
        good = [place for place, row in enumerate(rows) if row.status == "ok"]
        if not good:
            return Partial({}, tuple(rows))
        weights = [float(rows[place].examples) for place in good]
        delta, total = self.total(good, weights), sum(weights)
        return Partial({"delta": Sum(delta, total), "stats": Sum({}, total)}, tuple(rows))

    def total(self, places: Sequence[int], weights: Sequence[float]) -> Arrays:
        """Returns the weighted sum of the deltas of some of the clients."""
        block = self._block
        scale = block.first.new_tensor(weights).unsqueeze(1)
        chosen = slice(None) if len(places) == len(self.norm_bound) else list(places)
        delta: Arrays = {}
        for layer, own in zip(block.layers, block.seen, strict=True):
            slopes = (own.slopes[:, chosen] * (scale * -block.rate)).flatten(1)
            delta[layer.weight] = times(slopes, own.inputs[chosen].flatten(0, 1).t())
            shift = own.bias[chosen].squeeze(1) - block.server[layer.bias]
            delta[layer.bias] = (shift * scale).sum(0)
        return delta

"""The ranges of the values inside the model, measured by clients on their own examples.

What leaves a client is two numbers a value, and with histograms a count a bin: no example does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from clients.training import ClientData, DataOf, row_of
from shared_models.arrays import Arrays
from shared_models.config import CalibrateStage
from shared_models.messages import BlockRequest
from shared_models.partial import Partial, Row
from shared_models.randomness import generator
from shared_models.ranges import (
    COUNTS,
    RANGES,
    as_arrays,
    check_ranges,
    histogram,
    join,
    merge,
    ranges_of,
    traced,
    values_of,
)
from shared_models.task import Task

BlockCalibrator = Callable[[BlockRequest, DataOf], Partial]


@dataclass(frozen=True)
class Calibration:
    """What a calibrate stage asks of clients, whatever the weights."""

    task: Task
    stage: CalibrateStage
    seed: int
    batch_size: int


def block_calibrator(about: Calibration) -> BlockCalibrator:
    """Returns what measures a block's clients: their ranges one by one, and a row for each.

    Computed in float32 on the CPU, as files for devices are. Clients whose examples cannot be read,
    or whose values are not finite or too large, are named in their row.
    """
    model = about.task.model().eval()
    graph = traced(model)  # shares the model's weights

    def measure(client_id: int, data: ClientData) -> dict[str, Arrays]:
        x = _drawn(about, client_id, data)
        found = _measured(graph, x, about)
        check_ranges(found[RANGES], about.stage.max_range)
        return found

    def calibrate_block(request: BlockRequest, data_of: DataOf) -> Partial:
        model.load_state_dict({name: own.float() for name, own in request.params.items()})
        found: list[dict[str, Arrays]] = []

        def calibrate(client_id: int) -> Row:
            def work(data: ClientData) -> Row:
                found.append(measure(client_id, data))
                return Row(client_id, len(data.y))

            return row_of(client_id, data_of, work)

        rows = tuple(calibrate(client_id) for client_id in request.client_ids)
        return Partial({}, rows, _stacked(found), about=request.about)

    return calibrate_block


def _drawn(about: Calibration, client_id: int, data: ClientData) -> Tensor:
    count = min(about.stage.examples_per_client, len(data.y))
    order = generator(about.seed, about.stage.name, client_id, "calibration")
    return torch.from_numpy(data.x[np.sort(order.choice(len(data.y), count, replace=False))])


def _measured(graph: GraphModule, x: Tensor, about: Calibration) -> dict[str, Arrays]:
    counted = about.stage.method == "percentile"
    ranges, counts = [], []
    for part in torch.split(x, about.batch_size):
        values = values_of(graph, part)
        ranges.append(ranges_of(values))
        if counted:
            counts.append({name: histogram(value) for name, value in values.items()})
    found = {RANGES: as_arrays(merge(ranges))}
    return {**found, COUNTS: join(counts)} if counted else found


def _stacked(found: list[dict[str, Arrays]]) -> dict[str, Arrays]:
    if not found:
        return {}
    return {
        kind: {name: torch.stack([own[kind][name] for own in found]) for name in arrays}
        for kind, arrays in found[0].items()
    }

"""FedEMA: a client keeps the more of its own model, the further the server's has gone from it.

Zhuang et al., "Divergence-aware federated self-supervised learning", ICLR 2022, section 4.2,
equations 3 to 5: client k, back in a round, does not begin at the server's W but at

    mu W_k + (1 - mu) W,    mu = min(lambda_k |W - W_k|, 1),    lambda_k = tau / |W - W_k|

where W_k is what it had trained last, the distance is that of the encoders, and lambda_k is set
once, when the client is back for the first time. A client that was never there begins at W. The
server does what it does for FedAvg.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shared_models.arrays import Arrays, global_norm
from shared_models.objectives import (
    Batch,
    Broadcast,
    Ground,
    Metrics,
    Noise,
    Objective,
    Sums,
)
from shared_models.objectives.local import Local
from shared_models.objectives.pretext import pretext
from shared_models.partial import ClientState

_ENCODER = "encoder."


class Mixed(NamedTuple):
    """A client in training, and its lambda; 0 before it is set."""

    way: Local
    scale: Tensor


def fedema(ground: Ground, tau: float) -> Objective:
    """Returns the task's objective without labels, begun between the client's model and W."""
    plain = pretext(ground)

    def begin(server: Broadcast, state: ClientState, data: Batch) -> Mixed:
        way = plain.begin(server, {}, data)
        own = state["own"]
        apart = _distance(server.params, own)
        set_now = (state["scale"]["value"] == 0) & (apart > 0)
        scale = torch.where(set_now, tau / apart.clamp(min=1e-12), state["scale"]["value"])
        mu = (scale * apart).clamp(max=1.0)
        mixed = {name: mu * own[name] + (1 - mu) * w for name, w in way.params.items()}
        return Mixed(way._replace(params=mixed), scale)

    def step(local: Mixed, batch: Batch, noise: Noise) -> tuple[Mixed, Metrics]:
        way, metrics = plain.step(local.way, batch, noise)
        return local._replace(way=way), metrics

    def end(local: Mixed) -> tuple[Sums, ClientState, Metrics]:
        sums, _, metrics = plain.end(local.way)
        return sums, {"own": local.way.arrays, "scale": {"value": local.scale}}, metrics

    def init_state(params: Arrays) -> ClientState:
        none_yet = next(iter(params.values())).new_zeros(())
        return {"own": params, "scale": {"value": none_yet}}

    return Objective(begin, step, end, plain.draw, init_state=init_state)


def _distance(left: Arrays, right: Arrays) -> Tensor:
    names = [name for name, own in left.items() if name.startswith(_ENCODER)]
    return global_norm({k: left[k] - right[k] for k in names if left[k].is_floating_point()})

"""Ditto: a model for all, and for each client one of its own that is drawn to it.

Li et al., "Ditto: fair and robust federated learning through personalization", ICML 2021, Algorithm
1, with the solver of Algorithm 2: on each batch a client takes two steps,

    w <- w - eta grad F(w)                                    from the server's w_server: FedAvg
    v <- v - eta (grad F(v) + lambda (v - w_server))          its own, kept from round to round

with the stage's local optimiser and the same noise. A client's `v` is a whole model, running
statistics included; it begins as the server's model of the first round that the client takes part
in. The server does what it does for FedAvg, and never sees `v` in a sum.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from shared_models.arrays import Arrays, add, subtract
from shared_models.objectives import (
    Batch,
    Broadcast,
    Ground,
    Metrics,
    Noise,
    Objective,
    Sums,
)
from shared_models.objectives.local import Local, LocalTraining
from shared_models.partial import ClientState


class Two(NamedTuple):
    """A client's copy of the shared model, and its own model, in training."""

    shared: Local
    own: Local


def ditto(ground: Ground, strength: float) -> Objective:
    """Returns the objective; `strength` is the paper's lambda."""
    training = LocalTraining(ground)

    def begin(server: Broadcast, state: ClientState, data: Batch) -> Two:
        return Two(training.begin(server, {}, data), training.start(state["own"]))

    def step(local: Two, batch: Batch, noise: Noise) -> tuple[Two, Metrics]:
        def drawn(gradient: Arrays, params: Arrays) -> Arrays:
            return add(gradient, subtract(params, local.shared.start), strength)

        shared, metrics = training.step(local.shared, batch, noise)
        own, _ = training.step(local.own, batch, noise, drawn)
        return Two(shared, own), metrics

    def end(local: Two) -> tuple[Sums, ClientState, Metrics]:
        sums, _, metrics = training.end(local.shared)
        return sums, {"own": local.own.arrays}, metrics

    return replace(
        training.objective(),
        begin=begin,
        step=step,
        end=end,
        init_state=lambda params: {"own": params},
        own_model=lambda _, state: state["own"],
    )

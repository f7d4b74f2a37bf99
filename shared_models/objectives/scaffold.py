"""SCAFFOLD: control variates take out of each step what sets a client apart from the others.

Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020,
Algorithm 1, with option II. A client has `c_i`, the server `c`; both begin with 0:

    client   y <- y - eta (g(y) - c_i + c)                    K steps from the server's x
             c_i+ = c_i - c + (x - y) / (K eta)
             sends y - x and c_i+ - c_i
    server   x <- x + eta_g mean(y - x)                       means over clients, all alike
             c <- c + |S| / N mean(c_i+ - c_i)

K is the number of steps that the client took, so that unequal clients fit; eta_g is the server
optimiser's rate. Personal arrays are not averaged, so that nothing sets them apart: they take plain
steps and have no control.

What a client sends of its control is as bounded as its update: c_i+ - c_i + c is (x - y) / (K eta),
and |x - y| is at most `max_norm`. A mean over clients is bounded by the mean of their bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from shared_models.arrays import Arrays, add, global_norm, subtract, zeros_like
from shared_models.errors import InputError, UpdateError
from shared_models.objectives import (
    Batch,
    Broadcast,
    Extras,
    Ground,
    Means,
    Metrics,
    Noise,
    Objective,
    ServerSide,
    Sums,
    Terms,
)
from shared_models.objectives.local import Local, LocalTraining
from shared_models.partial import STANDARD_SUMS, ClientState, Sum, SumSpec

_SUMS = {
    **STANDARD_SUMS,
    "delta": SumSpec("trainable", "one"),
    "control": SumSpec("trainable", "one"),
}


class Controlled(NamedTuple):
    """A client in training, the server's control `c` and its own `c_i`."""

    way: Local
    server: Arrays
    own: Arrays


def scaffold(ground: Ground) -> Objective:
    """Returns the objective; `InputError` unless the local optimiser is plain descent."""
    training, rate = LocalTraining(ground), ground.optimizer.plain_rate
    if rate is None:
        raise InputError("objective: 'scaffold' needs local_optimizer 'sgd' without clipping")
    plain = training.objective()

    def zero(params: Arrays) -> dict[str, Arrays]:
        return {"control": zeros_like(training.shared(params))}

    def init_state(params: Arrays) -> ClientState:
        return {**plain.init_state(params), **zero(params)}

    def begin(server: Broadcast, state: ClientState, data: Batch) -> Controlled:
        way = training.begin(server, state, data)
        return Controlled(way, server.extras["control"], state["control"])

    def step(local: Controlled, batch: Batch, noise: Noise) -> tuple[Controlled, Metrics]:
        def controlled(gradient: Arrays, _: Arrays) -> Arrays:
            without_own = subtract(training.shared(gradient), local.own)
            return {**gradient, **add(without_own, local.server)}

        way, metrics = training.step(local.way, batch, noise, controlled)
        return local._replace(way=way), metrics

    def end(local: Controlled) -> tuple[Sums, ClientState, Metrics]:
        sums, state, metrics = training.end(local.way)
        length = local.way.steps * rate  # K eta
        change = {name: -c - sums["delta"][name] / length for name, c in local.server.items()}
        state = {**state, "control": add(local.own, change)}
        return {**sums, "control": change}, state, metrics

    return replace(
        plain,
        begin=begin,
        step=step,
        end=end,
        sums=_SUMS,
        init_state=init_state,
        server=ServerSide(zero, _absorb),
        check=_check,
    )


def _check(sums: Mapping[str, Sum], examples: Sequence[int], terms: Terms) -> None:
    control = sums["control"]
    slope = add(terms.extras["control"], control.arrays, 1 / control.weight)
    step = terms.rate * float(global_norm(slope))
    bound = terms.max_norm * sum(1 / terms.steps(own) for own in examples) / len(examples)
    if not step <= bound:
        raise UpdateError(
            f"control tells of a mean step of norm {step:.3g}, the bound is {bound:g}"
        )


def _absorb(means: Means, extras: Extras, share: float) -> tuple[Means, Extras]:
    control = add(extras["control"], means["control"], share)
    rest = {name: arrays for name, arrays in means.items() if name != "control"}
    return rest, {"control": control}

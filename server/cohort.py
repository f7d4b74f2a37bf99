"""Who is asked in a round, and in which order the answers come: on a simulated clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from server.population import Population
from server.sampling import count_of, draw_clients
from shared_models.config import Config, TrainStage
from shared_models.faults import delay_of, fault_of
from shared_models.partial import About, Row


@dataclass(frozen=True)
class Cohort:
    """Those asked in one attempt at a round.

    `target` updates suffice. `in_time` answer before the deadline, in this order; `late` do not.
    `delays` are seconds on the simulated clock, `injected` the kinds of fault, by client id.
    """

    target: int
    deadline_s: float
    in_time: tuple[int, ...]
    late: tuple[Row, ...]
    delays: Mapping[int, float]
    injected: Mapping[int, str]

    def waited_s(self, answered: int, *, enough: bool) -> float:
        """Returns how long the server waited for the first `answered` ones, in simulated seconds.

        When they were not enough it waited for the last that was in time, or for the deadline.
        """
        waited = max((self.delays[k] for k in self.in_time[:answered]), default=0.0)
        return waited if enough or not self.late else max(waited, self.deadline_s)


def draw_cohort(config: Config, stage: TrainStage, population: Population, about: About) -> Cohort:
    """Returns an attempt's cohort, a pure function of config, population and `about`.

    Over-selection asks `ceil(over_selection * clients_per_round)` clients (Bonawitz et al.,
    "Towards federated learning at scale: system design", SysML 2019, section 2.2). They answer
    after their delay, those with equal delays in the order in which they were drawn.
    """
    target = min(stage.clients_per_round, len(population))
    asked = count_of(stage.over_selection, stage.clients_per_round)
    drawn = draw_clients(population.client_ids, asked, config.seed, about)
    kinds = {k: kind for k in drawn if (kind := fault_of(config.faults, config.seed, about, k))}
    delays = {k: delay_of(config.faults, kinds.get(k)) for k in drawn}
    deadline = math.inf if stage.round_deadline_s is None else stage.round_deadline_s
    in_time = [k for k in drawn if delays[k] < deadline or delays[k] == 0.0]
    late = tuple(
        Row(k, population.examples_of[k], {}, "late", _why_late(delays[k], deadline))
        for k in sorted(set(drawn) - set(in_time))
    )
    in_time.sort(key=delays.__getitem__)
    return Cohort(target, deadline, tuple(in_time), late, delays, kinds)


def _why_late(delay: float, deadline: float) -> str:
    told = "no answer" if delay == math.inf else f"an answer after {delay:g} s"
    return f"{told}, the deadline of the round is {deadline:g} s"

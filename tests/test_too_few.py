"""Robust rules and too few updates: refused at the start, or below the quorum, never silent."""

from __future__ import annotations

import pytest

from deploy.simulate import check
from server.aggregators.krum import krum
from server.aggregators.trimmed_mean import trimmed_mean
from server.coordinator import begin_stage, quorum, run_round
from server.events import Notice
from shared_models.errors import ConfigError, InputError
from shared_models.messages import BlockFailure, BlockRequest, Reply
from tests.in_memory import config_of, opened, send_to

KRUM = ("stages.train.aggregator=krum", "stages.train.byzantine_fraction=0.2")
TRIMMED = ("stages.train.aggregator=trimmed_mean", "stages.train.trim_fraction=0.2")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((*KRUM, "stages.train.byzantine_fraction=0.4"), "krum needs 11 usable updates"),
        ((*KRUM, "stages.train.clients_per_round=6"), "krum needs 7 usable updates"),
        ((*TRIMMED, "stages.train.trim_fraction=0.05"), "trim_fraction 0.05 of 10 updates"),
        ((*TRIMMED, "stages.train.clients_per_round=4"), "none would be trimmed"),
    ],
)
def test_what_can_never_work_is_refused_in_the_config(
    overrides: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=f"clients_per_round: .*{told}"):
        config_of(*overrides)


@pytest.mark.parametrize("rule", [KRUM, TRIMMED])
def test_a_population_that_is_too_small_is_refused_before_round_1(
    rule: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = config_of(*rule, "data.clients=4")
    with pytest.raises(InputError, match=r"stage 'train': .* the population has 4 clients"):
        check(config, tmp_path_factory.getbasetemp() / "run")
    with pytest.raises(InputError, match="the population has 4 clients"):
        opened(*rule, "data.clients=4")


@pytest.mark.parametrize(
    ("rule", "share", "needed"),
    [(KRUM, 0.0, 7), (KRUM, 0.9, 9), (TRIMMED, 0.0, 5), (TRIMMED, 0.9, 9), ((), 0.0, 1)],
)
def test_the_quorum_is_no_smaller_than_what_the_rule_needs(
    rule: tuple[str, ...], share: float, needed: int
) -> None:
    _, _, run = opened(*rule, f"stages.train.min_fraction={share}")
    assert quorum(run) == needed


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.29, 0.4, 0.49])
def test_from_the_quorum_on_the_rule_works(fraction: float) -> None:
    for clients in range(1, 60):
        assert (krum(fraction).fault(clients) is None) == (
            clients >= 2 * -(-round(fraction * 100) * clients // 100) + 3
        )
        trims = round(fraction * 100) * clients // 100
        assert (trimmed_mean(fraction).fault(clients) is None) == (trims > 0 or not fraction)


def test_a_round_with_too_few_for_krum_is_tried_again_with_another_cohort() -> None:
    _, host, run = opened(*KRUM, "plan.block_size=1")
    lost = set(range(6))
    told: list[object] = []

    def tamper(request: BlockRequest, reply: Reply) -> Reply:
        gone = request.attempt == 0 and request.client_ids[0] in lost
        return BlockFailure("unplugged") if gone else reply

    state = begin_stage(run, host.task.build(0))
    record = run_round(run, state, send_to(host, tamper), told.append).record
    assert (record.attempts, record.clients_aggregated) == (2, 10)
    assert "the quorum is 7" in "".join(n.text for n in told if isinstance(n, Notice))

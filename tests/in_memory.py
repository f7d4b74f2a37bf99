"""The middle without Flower: a real host behind a plain `send`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from clients.host import Host, open_host
from server.coordinator import StageRun, make_stage_run
from server.population import merge_hellos
from shared_models.config import Config, parse_config
from shared_models.messages import BlockRequest, Reply, Send
from shared_models.partial import ClientState
from tests.conftest import DIGITS

Tamper = Callable[[BlockRequest, Reply], Reply]


def config_of(*overrides: str) -> Config:
    """Returns the small digits config with some keys changed."""
    return parse_config(DIGITS, "test", overrides=overrides)


def send_to(host: Host, tamper: Tamper = lambda _, reply: reply) -> Send:
    """Returns a `send` that trains here; `tamper` may change what comes back."""

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            trainer = host.trainer(request.stage, host.local_factor(request.stage, request.round))
            yield tamper(request, trainer(request, host.data_of))

    return send


class Kept:
    """What clients keep, in a dict by stage and round."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, int], dict[int, ClientState]] = {}

    def load(self, stage: str, number: int, client_ids: Sequence[int]) -> dict[int, ClientState]:
        newest: dict[int, ClientState] = {}
        for (own, earlier), states in sorted(self._rounds.items()):
            newest |= states if own == stage and earlier <= number else {}
        return {client_id: newest[client_id] for client_id in client_ids if client_id in newest}

    def newest(self, stage: str, number: int, client_ids: Sequence[int]) -> dict[int, int]:
        newest: dict[int, int] = {}
        for (own, earlier), states in sorted(self._rounds.items()):
            newest |= dict.fromkeys(states, earlier) if own == stage and earlier <= number else {}
        return {client_id: newest[client_id] for client_id in client_ids if client_id in newest}

    def save(self, stage: str, number: int, states: Mapping[int, ClientState]) -> None:
        self._rounds.setdefault((stage, number), {}).update(states)

    def rewind(self, stage: str, number: int) -> None:
        later = [key for key in self._rounds if key[0] == stage and key[1] > number]
        for key in later:
            del self._rounds[key]

    def commit(self) -> None:
        pass

    def prune(self, stage: str, number: int, best: int | None = None) -> None:
        del stage, number, best


def stage_run(config: Config, host: Host) -> StageRun:
    """Returns the first stage's parts, without evaluation."""
    population = merge_hellos({1: host.hello()})
    return make_stage_run(config, config.learning_stages[0], host.task, population, None)


def opened(*overrides: str) -> tuple[Config, Host, StageRun]:
    """Returns a config, its host and its first stage."""
    config = config_of(*overrides)
    host = open_host(config)
    return config, host, stage_run(config, host)

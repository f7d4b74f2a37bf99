"""The middle without Flower: a real host behind a plain `send`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from clients.host import Host, open_host
from server.coordinator import StageRun, make_stage_run
from server.population import merge_hellos
from shared_models.config import Config, parse_config
from shared_models.messages import BlockRequest, Reply, Send
from tests.conftest import DIGITS

Tamper = Callable[[BlockRequest, Reply], Reply]


def config_of(*overrides: str) -> Config:
    """Returns the small digits config with some keys changed."""
    return parse_config(DIGITS, "test", overrides=overrides)


def send_to(host: Host, tamper: Tamper = lambda _, reply: reply) -> Send:
    """Returns a `send` that trains here; `tamper` may change what comes back."""

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            trainer = host.trainer(request.stage)
            yield tamper(request, trainer(request, host.data_of))

    return send


def stage_run(config: Config, host: Host) -> StageRun:
    """Returns the first stage's parts, without evaluation."""
    population = merge_hellos({1: host.hello()})
    return make_stage_run(config, config.learning_stages[0], host.task, population, None)


def opened(*overrides: str) -> tuple[Config, Host, StageRun]:
    """Returns a config, its host and its first stage."""
    config = config_of(*overrides)
    host = open_host(config)
    return config, host, stage_run(config, host)

"""What a node answers: content in, content out. The shim for Flower is clients/app.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

from flwr.app import RecordDict

from clients.calibration import BlockCalibrator
from clients.evaluation import BlockEvaluator
from clients.host import Host, open_host
from clients.kept_states import with_kept, without_kept
from clients.training import BlockTrainer
from shared_models.config import BUILTIN, Config, parse_config
from shared_models.verbs import CALIBRATE_BLOCK, EVALUATE_BLOCK, HELLO, LEFT_OUT, TRAIN_BLOCK
from shared_models.wire import decode_request, encode_hello, encode_partial

OpenHost: TypeAlias = Callable[[Config], Host]
"""How a node comes by its clients; must be hashable: what it opened is kept."""


def answer(verb: str, config: str, content: RecordDict, open_: OpenHost = open_host) -> RecordDict:
    """Returns the answer to one message of a run with this config, as TOML.

    Hosts and trainers are kept for the next message.
    """
    return _ANSWERS[verb](config, content, open_)


def part_of(node_config: Mapping[str, object]) -> OpenHost:
    """Returns how a simulated node opens its part of the population, or all of it."""
    if "partition-id" not in node_config:
        return open_host
    place, places = (node_config[key] for key in ("partition-id", "num-partitions"))
    return _open_part(int(str(place)), int(str(places)))


@functools.cache
def _open_part(place: int, places: int) -> OpenHost:
    return lambda config: open_host(config).part(place, places)


def _hello(config: str, _content: RecordDict, open_: OpenHost) -> RecordDict:
    return encode_hello(_host(config, open_).hello())


def _left_out(_config: str, _content: RecordDict, _open: OpenHost) -> RecordDict:
    return RecordDict()  # whoever started the node is told by its service, where there is one


def _train(config: str, content: RecordDict, open_: OpenHost) -> RecordDict:
    request, host = decode_request(content), _host(config, open_)
    factor = host.local_factor(request.stage, request.round)
    train = _trainer(config, open_, request.stage, factor)
    partial = train(with_kept(host, request), host.data_for(request.stage))
    return encode_partial(without_kept(host, request, partial))


def _evaluate(config: str, content: RecordDict, open_: OpenHost) -> RecordDict:
    request, host = decode_request(content), _host(config, open_)
    measure = _evaluator(config, open_, request.stage)
    return encode_partial(measure(with_kept(host, request), host.data_for(request.stage)))


def _calibrate(config: str, content: RecordDict, open_: OpenHost) -> RecordDict:
    request = decode_request(content)
    partial = _calibrator(config, open_, request.stage)(request, _host(config, open_).data_of)
    return encode_partial(partial)


_ANSWERS = {
    HELLO: _hello,
    LEFT_OUT: _left_out,
    TRAIN_BLOCK: _train,
    EVALUATE_BLOCK: _evaluate,
    CALIBRATE_BLOCK: _calibrate,
}


@functools.lru_cache(maxsize=1)
def _host(config: str, open_: OpenHost) -> Host:
    return open_(parse_config(config or BUILTIN, "run config"))


@functools.lru_cache(maxsize=1)
def _trainer(config: str, open_: OpenHost, stage: str, factor: float) -> BlockTrainer:
    return _host(config, open_).trainer(stage, factor)


@functools.lru_cache(maxsize=1)
def _evaluator(config: str, open_: OpenHost, stage: str) -> BlockEvaluator:
    return _host(config, open_).evaluator(stage)


@functools.lru_cache(maxsize=1)
def _calibrator(config: str, open_: OpenHost, stage: str) -> BlockCalibrator:
    return _host(config, open_).calibrator(stage)


def forget() -> None:
    """Forgets what is kept for the next message: the task's own code has changed."""
    for kept in (_host, _trainer, _evaluator, _calibrator):
        kept.cache_clear()

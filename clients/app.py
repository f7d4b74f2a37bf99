"""The ClientApp: answers hello, trains blocks. The same object runs in every engine.

Handlers and caches stand at module level because Flower's simulation sends them to its workers by
name: what is defined inside a function would not travel.
"""

from __future__ import annotations

import functools

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.host import Host, open_host
from clients.trainer import Training, train_block
from shared_models.config import BUILTIN, parse_config
from shared_models.wire import HELLO, TRAIN_BLOCK, decode_request, encode_hello, encode_partial

app = ClientApp()


@app.query(HELLO.removeprefix("query."))
def answer_hello(message: Message, context: Context) -> Message:
    """Answers which clients this node hosts."""
    return Message(encode_hello(_host(*_who(context)).hello()), reply_to=message)


@app.train(TRAIN_BLOCK.removeprefix("train."))
def answer_block(message: Message, context: Context) -> Message:
    """Trains a block of clients and answers with their partial."""
    # More threads would change the order of sums, and so the bytes; workers scale instead.
    torch.set_num_threads(1)
    who = _who(context)
    request = decode_request(message.content)
    partial = train_block(_training(request.stage, *who), request, _host(*who).data_of)
    return Message(encode_partial(partial), reply_to=message)


def _who(context: Context) -> tuple[str, int | None, int]:
    """Returns the run's config and which part of the population this node hosts (None: any)."""
    config = str(context.run_config.get("config") or BUILTIN)
    if "partition-id" not in context.node_config:
        return config, None, 1
    place = int(context.node_config["partition-id"])
    return config, place, int(context.node_config["num-partitions"])


@functools.lru_cache(maxsize=1)
def _host(config: str, place: int | None, places: int) -> Host:
    return open_host(parse_config(config, "run config"), place, places)


@functools.lru_cache(maxsize=1)
def _training(stage: str, config: str, place: int | None, places: int) -> Training:
    return _host(config, place, places).training(stage)

"""The ClientApp: answers hello, trains blocks. The same object runs in every engine."""

from __future__ import annotations

import functools

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.host import Host, open_host
from clients.trainer import Training, train_block
from shared_models.config import BUILTIN, parse_config
from shared_models.wire import HELLO, TRAIN_BLOCK, decode_request, encode_hello, encode_partial


def make_app() -> ClientApp:
    """Returns a ClientApp that keeps its data and its stage between messages."""
    client_app = ClientApp()

    @functools.lru_cache(maxsize=1)
    def host_of(config: str, place: int | None, places: int) -> Host:
        return open_host(parse_config(config, "run config"), place, places)

    @functools.lru_cache(maxsize=1)
    def training_of(config: str, stage: str, place: int | None, places: int) -> Training:
        return host_of(config, place, places).training(stage)

    @client_app.query(HELLO.removeprefix("query."))
    def hello(message: Message, context: Context) -> Message:
        return Message(encode_hello(host_of(*_who(context)).hello()), reply_to=message)

    @client_app.train(TRAIN_BLOCK.removeprefix("train."))
    def block(message: Message, context: Context) -> Message:
        # More threads would change the order of sums, and so the bytes; workers scale instead.
        torch.set_num_threads(1)
        config, place, places = _who(context)
        request = decode_request(message.content)
        training = training_of(config, request.stage, place, places)
        partial = train_block(training, request, host_of(config, place, places).data_of)
        return Message(encode_partial(partial), reply_to=message)

    return client_app


def _who(context: Context) -> tuple[str, int | None, int]:
    """Returns the run's config and which part of the population this node hosts (None: any)."""
    config = str(context.run_config.get("config") or BUILTIN)
    if "partition-id" not in context.node_config:
        return config, None, 1
    place = int(context.node_config["partition-id"])
    return config, place, int(context.node_config["num-partitions"])


app = make_app()

"""The ClientApp: answers hello, trains blocks. The same object runs in every engine.

Handlers and caches stand at module level because Flower's simulation sends them to its workers by
name: what is defined inside a function would not travel.
"""

from __future__ import annotations

import functools

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.evaluation import BlockEvaluator
from clients.host import Host, open_host
from clients.training import BlockTrainer
from shared_models.config import BUILTIN, parse_config
from shared_models.wire import (
    EVALUATE_BLOCK,
    HELLO,
    TRAIN_BLOCK,
    decode_request,
    encode_hello,
    encode_partial,
)

app = ClientApp()


@app.query(HELLO.removeprefix("query."))
def answer_hello(message: Message, context: Context) -> Message:
    """Answers which clients this node hosts: all, or its part of a simulated federation."""
    host = _host(_config(context))
    if "partition-id" in context.node_config:
        place, places = (context.node_config[key] for key in ("partition-id", "num-partitions"))
        host = host.part(int(place), int(places))
    return Message(encode_hello(host.hello()), reply_to=message)


@app.train(TRAIN_BLOCK.removeprefix("train."))
def answer_block(message: Message, context: Context) -> Message:
    """Trains a block of clients and answers with their partial."""
    # More threads would change the order of sums, and so the bytes; workers scale instead.
    torch.set_num_threads(1)
    config = _config(context)
    request = decode_request(message.content)
    host = _host(config)
    factor = host.local_factor(request.stage, request.round)
    partial = _trainer(config, request.stage, factor)(request, host.data_of)
    return Message(encode_partial(partial), reply_to=message)


@app.evaluate(EVALUATE_BLOCK.removeprefix("evaluate."))
def answer_evaluation(message: Message, context: Context) -> Message:
    """Measures the model on the own examples of a block of clients, and answers a row for each."""
    torch.set_num_threads(1)
    config = _config(context)
    request = decode_request(message.content)
    partial = _evaluator(config, request.stage)(request, _host(config).data_of)
    return Message(encode_partial(partial), reply_to=message)


def _config(context: Context) -> str:
    return str(context.run_config.get("config") or BUILTIN)


@functools.lru_cache(maxsize=1)
def _host(config: str) -> Host:
    return open_host(parse_config(config, "run config"))


@functools.lru_cache(maxsize=1)
def _trainer(config: str, stage: str, factor: float) -> BlockTrainer:
    return _host(config).trainer(stage, factor)


@functools.lru_cache(maxsize=1)
def _evaluator(config: str, stage: str) -> BlockEvaluator:
    return _host(config).evaluator(stage)

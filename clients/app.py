"""The ClientApp: answers hello, trains blocks. The same object runs in every engine.

On a device a process lives for one message, so nothing here imports torch: where the node's config
names a `trainer`, a process that stays warm answers. Handlers stand at module level because
Flower's simulation sends them to its workers by name.
"""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from shared_models.verbs import CALIBRATE_BLOCK, EVALUATE_BLOCK, HELLO, LEFT_OUT, TRAIN_BLOCK

app = ClientApp()


@app.query(HELLO.removeprefix("query."))
def answer_hello(message: Message, context: Context) -> Message:
    """Answers which clients this node hosts: all, or its part of a simulated federation."""
    return _answer(HELLO, message, context)


@app.query(LEFT_OUT.removeprefix("query."))
def answer_left_out(message: Message, context: Context) -> Message:
    """Takes the server's word that this node has no part in the run, and why."""
    return _answer(LEFT_OUT, message, context)


@app.train(TRAIN_BLOCK.removeprefix("train."))
def answer_block(message: Message, context: Context) -> Message:
    """Trains a block of clients and answers with their partial."""
    return _answer(TRAIN_BLOCK, message, context)


@app.evaluate(EVALUATE_BLOCK.removeprefix("evaluate."))
def answer_evaluation(message: Message, context: Context) -> Message:
    """Measures the model on the own examples of a block of clients, and answers a row for each."""
    return _answer(EVALUATE_BLOCK, message, context)


@app.query(CALIBRATE_BLOCK.removeprefix("query."))
def answer_calibration(message: Message, context: Context) -> Message:
    """Measures the ranges inside the model on the own examples of a block of clients."""
    return _answer(CALIBRATE_BLOCK, message, context)


def _answer(verb: str, message: Message, context: Context) -> Message:
    config = str(context.run_config.get("config") or "")
    if trainer := context.node_config.get("trainer"):
        content = _by_trainer(str(trainer), verb, config, message)
    else:
        content = _here(verb, config, message.content, context)
    return Message(content, reply_to=message)


def _here(verb: str, config: str, content: RecordDict, context: Context) -> RecordDict:
    from clients.answers import answer, part_of
    from clients.process import get_ready

    get_ready()
    return answer(verb, config, content, part_of(context.node_config))


def _by_trainer(address: str, verb: str, config: str, message: Message) -> RecordDict:
    from clients.warm.caller import ask

    # Its whole life, not what is left of it: the clocks of server and device may differ.
    return ask(address, verb, config, message.content, message.metadata.ttl)

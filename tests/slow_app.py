"""The ClientApp, but for one client whose training hangs."""

from __future__ import annotations

import time

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import answer_block, answer_hello
from shared_models.verbs import HELLO, TRAIN_BLOCK

HANGS = 3

app = ClientApp()
app.query(HELLO.removeprefix("query."))(answer_hello)


@app.train(TRAIN_BLOCK.removeprefix("train."))
def train(message: Message, context: Context) -> Message:
    """Trains, or hangs."""
    client_ids = message.content.config_records["request"]["client_ids"]
    if isinstance(client_ids, list) and HANGS in client_ids:
        time.sleep(600)
    return answer_block(message, context)

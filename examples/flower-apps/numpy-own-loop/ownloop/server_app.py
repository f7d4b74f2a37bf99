"""The ServerApp: its own loop over the grid, no strategy."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from ownloop.model import FEATURES

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Standardises with the moments of all nodes, then descends the mean gradient."""
    config = context.run_config
    while len(nodes := list(grid.get_node_ids())) < config["min-nodes"]:
        time.sleep(0.1)  # a federation grows as its nodes connect
    mean, scale = ask_moments(grid, nodes)
    weights, told = np.zeros(FEATURES + 1), []
    for number in range(config["num-rounds"]):
        arrays = ArrayRecord(
            {"weights": Array(weights), "mean": Array(mean), "scale": Array(scale)}
        )
        replies = grid.send_and_receive(
            to_all(nodes, "train.gradient", RecordDict({"arrays": arrays}), str(number))
        )
        sums = fold(replies)
        weights -= config["learning-rate"] * (
            sums["gradient"] / sums["examples"] + config["penalty"] * weights
        )
        told.append(
            {"loss": sums["loss"] / sums["examples"], "failed": sums["failed"], "round": number}
        )
    np.save("weights.npy", weights)
    Path("metrics.json").write_text(json.dumps(told, indent=2))
    print(f"loss {told[-1]['loss']:.4f}, {told[-1]['failed']} of {len(nodes)} nodes failed")


def to_all(nodes: list[int], message_type: str, content: RecordDict, group: str) -> list[Message]:
    """Returns one message a node, all with the same content."""
    return [Message(content, node, message_type, group_id=group) for node in nodes]


def ask_moments(grid: Grid, nodes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each feature, over the points of all nodes."""
    waiting = set(grid.push_messages(to_all(nodes, "query.moments", RecordDict(), "moments")))
    count, total, squares = 0, np.zeros(FEATURES), np.zeros(FEATURES)
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            count += reply.content["count"]["examples"]
            total += reply.content["sums"]["sum"].numpy()
            squares += reply.content["sums"]["squares"].numpy()
        time.sleep(0.01)
    mean = total / count
    return mean, np.sqrt(squares / count - mean**2)


def fold(replies: Iterable[Message]) -> dict:
    """Sums what the nodes sent, and counts those that failed."""
    sums = {"gradient": np.zeros(FEATURES + 1), "loss": 0.0, "examples": 0, "failed": 0}
    for reply in replies:
        if reply.has_error():
            sums["failed"] += 1
            continue
        sums["gradient"] += reply.content["arrays"]["gradient"].numpy()
        sums["loss"] += reply.content["metrics"]["loss"]
        sums["examples"] += reply.content["metrics"]["examples"]
    return sums

"""The ServerApp: asks who is there, runs FedAdam, asks again."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam
from task import encoder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs FedAdam between two questions to all nodes."""
    torch.manual_seed(0)
    wait_for_nodes(grid, context.run_config["min-nodes"])
    before = ask(grid, "query.profile", "profile")
    strategy = FedAdam(eta=context.run_config["server.eta"], fraction_train=1.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(encoder().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
    )
    heads = ask(grid, "evaluate.personal", "metrics")
    after = ask(grid, "query.profile", "profile")
    np.savez("encoder.npz", **{name: a.numpy() for name, a in result.arrays.items()})
    told = {
        "before": sorted(before, key=lambda record: record["partition"]),
        "after": sorted(after, key=lambda record: record["partition"]),
        "heads": sorted(record["head_norm"] for record in heads),
        "train": [dict(record) for record in result.train_metrics_clientapp.values()],
        "clients": [dict(record) for record in result.evaluate_metrics_clientapp.values()],
    }
    Path("metrics.json").write_text(json.dumps(told, indent=2))
    print(f"accuracy under the nodes' own heads: {told['clients'][-1]['accuracy']:.4f}")


def wait_for_nodes(grid: Grid, count: int) -> None:
    """Returns when that many nodes are there: a federation grows as its nodes connect."""
    while len(list(grid.get_node_ids())) < count:
        time.sleep(0.1)


def ask(grid: Grid, message_type: str, key: str) -> list[dict]:
    """Sends a message without content to all nodes; returns one record of each reply."""
    messages = [
        Message(RecordDict(), dst_node_id=node_id, message_type=message_type)
        for node_id in grid.get_node_ids()
    ]
    return [dict(reply.content[key]) for reply in grid.send_and_receive(messages)]

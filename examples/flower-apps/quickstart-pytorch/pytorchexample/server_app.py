"""The ServerApp: FedAvg over all nodes, then the model and the metrics are saved."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from pytorchexample.task import Net, images
from pytorchexample.task import test as test_fn

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs FedAvg."""
    config = context.run_config
    torch.manual_seed(0)
    strategy = FedAvg(
        fraction_train=config["fraction-train"],
        fraction_evaluate=config["fraction-evaluate"],
        min_available_nodes=config["min-nodes"],
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
    told = {
        "train": result.train_metrics_clientapp,
        "clients": result.evaluate_metrics_clientapp,
        "server": result.evaluate_metrics_serverapp,
    }
    plain = {side: [dict(record) for record in rounds.values()] for side, rounds in told.items()}
    Path("metrics.json").write_text(json.dumps(plain, indent=2))
    print(f"accuracy after the last round: {plain['server'][-1]['accuracy']:.4f}")


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
    """Measures the model on 500 images that no node has."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test_fn(net, images(500, seed=11))
    return MetricRecord({"loss": loss, "accuracy": accuracy})

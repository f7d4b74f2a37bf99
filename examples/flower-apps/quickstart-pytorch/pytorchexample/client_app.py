"""The ClientApp: trains and evaluates on a node's own images."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pytorchexample.task import Net, load_data
from pytorchexample.task import test as test_fn
from pytorchexample.task import train as train_fn

app = ClientApp()


def _open(message: Message, context: Context) -> tuple:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    where = context.node_config
    data = load_data(where["partition-id"], where["num-partitions"], context.run_config["examples"])
    return net, *data


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains the model on the node's images."""
    net, data, _ = _open(message, context)
    config = message.content["config"]
    torch.manual_seed(1000 * config["server-round"] + context.node_config["partition-id"])
    loss = train_fn(
        net,
        data,
        context.run_config["local-epochs"],
        config["lr"],
        {"batch_size": context.run_config["batch-size"]},
    )
    metrics = {"train_loss": loss, "num-examples": len(data)}
    content = RecordDict(
        {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measures the model on the node's validation images."""
    net, _, data = _open(message, context)
    loss, accuracy = test_fn(net, data)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": max(1, len(data))}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

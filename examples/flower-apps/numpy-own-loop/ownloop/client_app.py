"""The ClientApp: sums over a node's points, nothing else leaves it."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ownloop.model import load_data, loss_and_gradient

app = ClientApp()


@app.query("moments")
def moments(message: Message, context: Context) -> Message:
    """Tells count, sum and sum of squares of each feature."""
    x, _ = load_data(context.node_config["partition-id"])
    sums = ArrayRecord({"sum": Array(x.sum(0)), "squares": Array((x**2).sum(0))})
    content = RecordDict({"sums": sums, "count": MetricRecord({"examples": len(x)})})
    return Message(content, reply_to=message)


@app.train("gradient")
def gradient(message: Message, context: Context) -> Message:
    """Tells loss and gradient at the weights that came."""
    partition_id = context.node_config["partition-id"]
    if partition_id == context.run_config["failing-partition"]:
        raise RuntimeError("the sensor is offline")
    arrays = message.content["arrays"]
    x, y = load_data(partition_id)
    x = (x - arrays["mean"].numpy()) / arrays["scale"].numpy()
    loss, slope = loss_and_gradient(arrays["weights"].numpy(), x, y)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"gradient": Array(np.asarray(slope))}),
            "metrics": MetricRecord({"loss": loss, "examples": len(y)}),
        }
    )
    return Message(content, reply_to=message)

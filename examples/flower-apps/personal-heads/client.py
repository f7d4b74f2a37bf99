"""The ClientApp: the head, and how often the node trained, live in `context.state`."""

from collections.abc import Iterator

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from task import encoder, head, load_data
from torch.nn.functional import cross_entropy


def count_messages(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod: counts the messages that a node answered, in its state."""
    seen = context.state.setdefault("seen", ConfigRecord({"messages": 0}))
    seen["messages"] += 1
    return call_next(message, context)


app = ClientApp(mods=[count_messages])


@app.lifespan()
def lifespan(context: Context) -> Iterator[None]:  # noqa: ARG001
    """One thread: the model is tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _own_head(context: Context) -> torch.nn.Linear:
    own = head()
    if "head" in context.state:
        own.load_state_dict(context.state["head"].to_torch_state_dict())
    else:
        torch.manual_seed(context.node_config["partition-id"])
        own.reset_parameters()
    return own


def _open(message: Message, context: Context) -> tuple:
    shared = encoder()
    shared.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return shared, _own_head(context), *load_data(context.node_config["partition-id"])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains encoder and head; sends the encoder, keeps the head."""
    shared, own, x, y = _open(message, context)
    parameters = [*shared.parameters(), *own.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=context.run_config["learning-rate"])
    for _ in range(context.run_config["local-steps"]):
        optimizer.zero_grad()
        loss = cross_entropy(own(shared(x)), y)
        loss.backward()
        optimizer.step()
    rounds = context.state.setdefault("rounds", MetricRecord({"trained": 0}))
    rounds["trained"] += 1
    context.state["head"] = ArrayRecord(own.state_dict())
    metrics = {"train_loss": loss.item(), "num-examples": len(y)}
    content = RecordDict(
        {"arrays": ArrayRecord(shared.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content, reply_to=message)


@app.evaluate()
@torch.no_grad()
def evaluate(message: Message, context: Context) -> Message:
    """Measures the encoder under the node's own head."""
    shared, own, x, y = _open(message, context)
    logits = own(shared(x))
    metrics = {
        "loss": cross_entropy(logits, y).item(),
        "accuracy": (logits.argmax(1) == y).float().mean().item(),
        "num-examples": len(y),
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


@app.evaluate("personal")
@torch.no_grad()
def evaluate_personal(message: Message, context: Context) -> Message:
    """Tells what the kept head looks like."""
    norm = sum(float(p.norm()) for p in _own_head(context).parameters())
    return Message(RecordDict({"metrics": MetricRecord({"head_norm": norm})}), reply_to=message)


@app.query("profile")
def profile(message: Message, context: Context) -> Message:
    """Tells who the node is and how often it trained."""
    x, _ = load_data(context.node_config["partition-id"])
    rounds = context.state.get("rounds", MetricRecord({"trained": 0}))
    told = {
        "partition": context.node_config["partition-id"],
        "examples": len(x),
        "trained": rounds["trained"],
        "messages": context.state["seen"]["messages"],
    }
    return Message(RecordDict({"profile": ConfigRecord(told)}), reply_to=message)

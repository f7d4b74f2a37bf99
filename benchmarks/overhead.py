"""What a round costs when nobody trains: the server's transport over an engine, and back.

    python -m benchmarks.overhead --engine ray --workers 2 --task mnist-2nn --blocks 10

The ClientApp answers every block with a partial that lies ready. Prints one line of JSON; seconds
are those of a round, from fresh weights to the last reply, decoded.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import time
from collections.abc import Iterator

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from deploy.engines.grid import LocalGrid
from server.app import make_transport
from server.population import Enough
from server.stage import Transport
from shared_models.arrays import Arrays, roles_of, size_bytes, with_role
from shared_models.messages import BlockRequest, Hello
from shared_models.partial import Partial, Row, Sum
from shared_models.tasks import load_task
from shared_models.verbs import HELLO, TRAIN_BLOCK
from shared_models.versions import versions
from shared_models.wire import decode_request, encode_hello, encode_partial

_BLOCK = 10

app = ClientApp()


@app.query(HELLO.removeprefix("query."))
def answer_hello(message: Message, _context: Context) -> Message:
    """Answers that any client can be trained here."""
    return Message(encode_hello(Hello((0,), (1,), True, "", versions())), reply_to=message)


@app.train(TRAIN_BLOCK.removeprefix("train."))
def answer_block(message: Message, context: Context) -> Message:
    """Answers with a partial that lies ready."""
    request = decode_request(message.content)
    rows = tuple(Row(client_id, 60, {"loss": 1.0}) for client_id in request.client_ids)
    sums = _ready(str(context.run_config["config"]))
    return Message(encode_partial(Partial(sums, rows, about=request.about)), reply_to=message)


@functools.lru_cache(maxsize=1)
def _ready(task_name: str) -> dict[str, Sum]:
    task = load_task(task_name)
    params, roles = task.build(0), roles_of(task.model())
    return {
        "delta": Sum(with_role(params, roles, "trainable"), 600.0),
        "stats": Sum(with_role(params, roles, "averaged"), 600.0),
    }


def run_round(transport: Transport, params: Arrays, blocks: int) -> float:
    """Returns the seconds of one round with weights that no engine has seen."""
    fresh = {name: tensor.clone() for name, tensor in params.items()}
    began = time.perf_counter()
    requests = [
        BlockRequest("train", 1, 0, block, tuple(range(_BLOCK)), fresh) for block in range(blocks)
    ]
    for reply in transport.train(requests):
        if not isinstance(reply, Partial):
            raise TypeError(reply.reason)
    return time.perf_counter() - began


@contextlib.contextmanager
def open_grid(engine: str, workers: int, task: str) -> Iterator[LocalGrid]:
    """Yields a grid whose ClientApp is the one above."""
    if engine == "inline":
        from deploy.engines.inline import InlineGrid

        yield InlineGrid(app, {"config": task})
        return
    from deploy.engines.cluster import connected
    from deploy.engines.ray import RayGrid

    with connected(None, workers) as number:
        yield RayGrid("benchmarks.overhead:app", {"config": task}, number, here=True)


def main() -> None:
    """Measures as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", choices=("inline", "ray"), default="ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--task", default="mnist-2nn")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    params = load_task(args.task).build(0)
    with open_grid(args.engine, args.workers, args.task) as grid:
        transport = make_transport(grid)
        transport.hello(Enough(1))
        seconds = [run_round(transport, params, args.blocks) for _ in range(args.rounds)]
    told = {
        **vars(args),
        "weights_bytes": size_bytes(params),
        "median_ms": 1000 * statistics.median(seconds),
        "min_ms": 1000 * min(seconds),
        "p90_ms": 1000 * sorted(seconds)[int(0.9 * len(seconds))],
        "first_ms": 1000 * seconds[0],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()

"""Inside an actor: the app's ClientApp, which answers the messages of any node.

What stands here travels to the actors by value, once each; what then goes back and forth are plain
values, which need none of our modules.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.object_ref import load_app

from deploy.apps.parcel import as_arrays, as_bytes, pack, unpack

# A skeleton and the bytes apart from it.
Packed = tuple[bytes, list[Any]]
# The message without its arrays; node id, partition and number of the call; what the node keeps.
Request = tuple[bytes, tuple[int, int, int], Packed | None]
# (reply, what the node keeps, if that changed) or (error code, reason).
Answer = tuple[Packed, Packed | None] | tuple[int, str]


@dataclass(frozen=True)
class NodeSetup:
    """What an actor must know to stand in for any node."""

    folder: str
    clientapp: str
    path: tuple[str, ...]
    run_id: int
    nodes: int
    run_config: dict[str, bool | float | int | str]


class NodeWorker:
    """Calls the ClientApp for one message after another.

    What a node keeps in its `context` comes with the message and goes back if the app changed it,
    unless the app failed: as in Flower's own simulation. The global generators of Python, NumPy and
    torch are seeded by partition and call, so that it does not matter which actor answers, even to
    an app that does not seed anything.
    """

    def __init__(self, setup: NodeSetup) -> None:
        self._setup = setup
        self._arrays: Sequence[Any] = ()
        self._apart: Sequence[bytes] = ()
        clean_path(setup.folder, setup.path)
        self._app, self._fault = load(setup.clientapp, setup.folder, ClientApp)

    def work(self, *args: Any) -> Any:
        """Answers requests; without any, tells why the ClientApp cannot be loaded, if so."""
        return self._answers(*args) if args else self._fault

    def _answers(
        self, requests: Sequence[Request], arrays: Sequence[Any]
    ) -> tuple[float, list[Answer]]:
        """Returns the seconds that it took, and the answers to requests that share their arrays."""
        began = time.perf_counter()
        if arrays is not self._arrays:  # a crew hands over the same object as long as it is shared
            self._arrays, self._apart = arrays, as_bytes(arrays)
        answers = [self._answer(*request) for request in requests]
        return time.perf_counter() - began, answers

    def _answer(
        self, skeleton: bytes, call_of: tuple[int, int, int], kept: Packed | None
    ) -> Answer:
        node_id, partition, call = call_of
        message = unpack(skeleton, self._apart)
        context = self._context(node_id, partition, kept)
        seed(partition, call)
        return self._call(message, context)

    def _context(self, node_id: int, partition: int, kept: Packed | None) -> Context:
        config = dict(self._setup.run_config)
        if kept is not None:
            node_config, state = unpack(kept[0], as_bytes(kept[1]))
        else:
            node_config = {"partition-id": partition, "num-partitions": self._setup.nodes}
            state = RecordDict()
        return Context(self._setup.run_id, node_id, node_config, state, config)

    def _call(self, message: Message, context: Context) -> Answer:
        before = pack((context.node_config, context.state))
        try:
            reply = self._app(message, context)
        except (Exception, SystemExit) as error:
            return ErrorCode.CLIENT_APP_RAISED_EXCEPTION, describe(error, self._setup.folder)
        if context.run_config != self._setup.run_config:
            return ErrorCode.UNKNOWN, "ValueError: a ClientApp cannot modify `context.run_config`"
        asked = message.metadata.message_id
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != asked:
            return ErrorCode.UNKNOWN, "TypeError: a ClientApp must return Message(reply_to=message)"
        after = pack((context.node_config, context.state))
        told = pack(reply)
        changed = (after[0], as_arrays(after[1])) if after != before else None
        return (told[0], as_arrays(told[1])), changed


def clean_path(folder: str, path: Sequence[str]) -> None:
    """Lets modules come from the app, then from the environment, and from nowhere else."""
    import ray

    of_ray = str(Path(ray.__file__).parent)  # it adds folders of its own to its workers' path
    own = [entry for entry in sys.path if entry.startswith(of_ray) and entry not in path]
    sys.path[:] = [folder, *path, *own]


def load(reference: str, folder: str, kind: type[Any]) -> tuple[Any, str]:
    """Returns the app that `module:attribute` names, or `None` and a line that says why not."""
    try:
        app = load_app(reference, AttributeError, folder)
    except AttributeError as error:
        module, _, attribute = reference.partition(":")
        if module in sys.modules and not hasattr(sys.modules[module], attribute.split(".")[0]):
            return None, f"{reference}: module {module!r} has no attribute {attribute!r}"
        return None, f"{reference}: cannot be imported: {describe(error, folder)}"
    except (Exception, SystemExit) as error:
        return None, f"{reference}: cannot be imported: {describe(error, folder)}"
    if not isinstance(app, kind):
        return None, f"{reference}: expected a {kind.__name__}, got {type(app).__name__}"
    return app, ""


def describe(error: BaseException, folder: str) -> str:
    """Returns an error as one line, with the app's own line where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(folder)]
    told = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError) or not own:
        return told
    return f"{told} ({Path(own[-1].filename).relative_to(folder)}, line {own[-1].lineno})"


def seed(*numbers: int) -> None:
    """Seeds the global generators that an app may draw from."""
    word = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(word)
    np.random.seed(word)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(word)

"""Any Flower app, unmodified: as under Flower's own simulation, and apart from our modules."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from deploy.apps.app import read_app
from deploy.apps.grid import AppGrid, Tally, node_id
from deploy.apps.parcel import as_arrays, as_bytes, pack, unpack
from deploy.apps.replies import Replies
from deploy.engines.crew import Job, Lost
from shared_models.errors import ConfigError
from tests.conftest import ROOT
from tests.test_flower import flower, wait_for

__all__ = ["flower"]  # a fixture

BIN = Path(sys.executable).parent
EXAMPLES = ROOT / "examples" / "flower-apps"

PYPROJECT = """
[project]
name = "probe"
version = "1"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "server:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
name = "probe"
out = "told.json"
answer.deep = 42
"""

# Its modules have the names of ours, and it tells what it sees.
PROBE = {
    "pyproject.toml": PYPROJECT,
    "deploy.py": 'WHO = "the app"',
    "task.py": "from deploy import WHO",
    "shared_models.py": "",
    "clients/__init__.py": "",
    "clients/app.py": """
        import os, random, sys, time
        import numpy as np
        from flwr.app import ArrayRecord, Array, ConfigRecord, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp
        import deploy, shared_models
        from task import WHO

        CACHE = []  # one an actor

        def mod(message, context, call_next):
            context.state["mod"] = ConfigRecord({"seen": message.metadata.message_type})
            return call_next(message, context)

        app = ClientApp(mods=[mod])

        @app.lifespan()
        def lifespan(context):
            CACHE.append(context.node_config["partition-id"])
            yield

        def reply(message, **values):
            return Message(RecordDict({"told": ConfigRecord(values)}), reply_to=message)

        @app.query()
        def where(message, context):
            files = [getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]
            return reply(message, who=WHO, path=[p for p in sys.path if p], files=files,
                         partition=context.node_config["partition-id"],
                         nodes=context.node_config["num-partitions"],
                         deep=context.run_config["answer.deep"], pid=os.getpid())

        @app.train("count")
        def count(message, context):
            kept = context.state.setdefault("kept", ConfigRecord({"calls": 0}))
            kept["calls"] += 1
            context.state["big"] = ArrayRecord({"a": Array(np.full(9000, kept["calls"]))})
            if message.content["ask"]["fail"] == context.node_config["partition-id"]:
                raise ValueError("no\\nluck")
            weights = message.content["arrays"]["w"].numpy()
            weights += 1  # a copy: another node must not see it
            return reply(message, calls=kept["calls"], first=float(weights[0]),
                         big=float(context.state["big"]["a"].numpy()[0]),
                         seen=context.state["mod"]["seen"], number=message.content["ask"]["number"])

        @app.evaluate("draw")
        def draw(message, context):
            return reply(message, numbers=[random.random(), float(np.random.random())])

        @app.evaluate("die")
        def die(message, context):
            if context.node_config["partition-id"] == 1:
                os._exit(3)
            return reply(message, alive=1)

        @app.evaluate("sleep")
        def sleep(message, context):
            time.sleep(60 if context.node_config["partition-id"] == 2 else 0)
            return reply(message, awake=context.node_config["partition-id"])

        @app.evaluate("wrong")
        def wrong(message, context):
            return None
    """,
    "server.py": """
        import json, random, sys
        from pathlib import Path
        import numpy as np
        from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
        from flwr.serverapp import ServerApp
        import deploy
        from task import WHO

        app = ServerApp()

        def messages(nodes, kind, fail=-1):
            arrays = ArrayRecord({"w": Array(np.zeros(50_000))})
            return [Message(RecordDict({"arrays": arrays,
                            "ask": ConfigRecord({"fail": fail, "number": n})}), node, kind)
                    for n, node in enumerate(nodes)]

        def told(replies):
            return [dict(r.content["told"]) if r.has_content() else
                    {"error": r.error.reason, "code": r.error.code} for r in replies]

        @app.main()
        def main(grid, context):
            nodes = list(grid.get_node_ids())
            files = [getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]
            out = {"who": WHO, "nodes": nodes, "config": context.run_config, "files": files,
                   "path": [p for p in sys.path if p],
                   "drawn": [random.random(), np.random.random()]}
            ask = lambda *args, **more: grid.send_and_receive(messages(*args), **more)
            out["where"] = told(ask(nodes, "query"))
            out["count"] = told(ask(nodes, "train.count"))
            out["failing"] = told(ask(nodes, "train.count", 2))
            ask([nodes[0]], "train.count")  # nobody looks at the reply
            replies = ask(nodes[::-1], "train.count")
            out["length"] = len(replies)
            out["backwards"] = told(replies)
            out["twice"] = told(ask([nodes[0], nodes[1], nodes[0]], "train.count"))
            ids = grid.push_messages(messages([nodes[3], nodes[0]], "train.count"))
            out["pulled"] = [r.metadata.reply_to_message_id in ids for r in grid.pull_messages(ids)]
            out["again"] = len(grid.pull_messages(ids))
            out["nested"] = [told(ask([nodes[0]], "train.count"))[0]["calls"]
                             for _ in ask([nodes[0], nodes[1]], "train.count")]
            out["draw"] = told(ask(nodes, "evaluate.draw"))
            out["draw again"] = told(ask(nodes, "evaluate.draw"))
            out["wrong"] = told(ask(nodes[:1], "evaluate.wrong"))
            out["unknown"] = told(ask([1, nodes[0]], "query"))
            out["sleep"] = told(ask(nodes, "evaluate.sleep", timeout=2.0))
            out["die"] = told(ask(nodes, "evaluate.die"))
            out["nothing"] = told(ask([], "query"))
            Path(context.run_config["out"]).write_text(json.dumps(out))
            print("the app has spoken")
    """,
}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def wildflower(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    cwd.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [BIN / "wildflower", "simulate", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # even so
        capture_output=True,
        text=True,
        check=False,
    )


def run_probe(folder: Path, *settings: str) -> tuple[dict[str, Any], Any]:
    app = write(folder / "app", PROBE)
    done = wildflower(folder, "--app", app, "--num-supernodes", 4, *settings)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "told.json").read_text()), done


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("probe")
    told, done = run_probe(folder, "-s", "name=7")
    return {**told, "folder": folder, "stdout": done.stdout, "stderr": done.stderr}


def test_app_and_clients_meet_their_own_modules_only(probe: dict[str, Any]) -> None:
    for place in (probe, *probe["where"]):
        assert place["who"] == "the app"
        assert place["path"][0] == str(probe["folder"] / "app")
        assert str(ROOT) not in place["path"]
        assert str(probe["folder"]) not in place["path"]  # where the command was started
        ours = [name for name in place["files"] if Path(name).is_relative_to(ROOT)]
        assert [name for name in ours if not Path(name).is_relative_to(sys.prefix)] == []


def test_nodes_are_told_who_they_are(probe: dict[str, Any]) -> None:
    assert probe["config"] == {"name": "7", "out": "told.json", "answer.deep": 42}
    assert probe["nodes"] == [node_id(partition) for partition in range(4)]
    assert [told["partition"] for told in probe["where"]] == [0, 1, 2, 3]
    assert {(told["nodes"], told["deep"]) for told in probe["where"]} == {(4, 42)}
    assert "the app has spoken" in probe["stdout"]


def test_state_is_kept_per_node_and_only_where_the_client_succeeded(probe: dict[str, Any]) -> None:
    assert [told["calls"] for told in probe["count"]] == [1, 1, 1, 1]
    assert [told.get("calls") for told in probe["failing"]] == [2, 2, None, 2]
    # Node 0 also counted a call whose reply nobody looked at; node 2's failed call is not counted.
    assert [told["calls"] for told in probe["backwards"]] == [3, 2, 3, 4]
    assert [told["big"] for told in probe["backwards"]] == [3, 2, 3, 4]
    assert [told["calls"] for told in probe["twice"]] == [5, 4, 6]
    # 7 was pushed; 8 is the first of the outer two, 9 and 10 are asked for in between.
    assert probe["nested"] == [9, 10]


def test_replies_come_in_the_order_of_the_messages(probe: dict[str, Any]) -> None:
    assert probe["length"] == 4
    assert [told["number"] for told in probe["backwards"]] == [0, 1, 2, 3]
    assert probe["pulled"] == [True, True]
    assert probe["again"] == 0
    assert probe["nothing"] == []


def test_shared_arrays_arrive_unchanged_at_every_node(probe: dict[str, Any]) -> None:
    assert {told["first"] for told in probe["count"] + probe["backwards"]} == {1.0}
    assert {told["seen"] for told in probe["count"]} == {"train.count"}


def test_a_failing_client_is_an_error_reply_and_one_line(probe: dict[str, Any]) -> None:
    assert probe["failing"][2]["code"] == 2
    assert "ValueError: no luck (clients/app.py, line " in probe["failing"][2]["error"]
    assert "partition 2: train.count failed: ValueError: no luck (" in probe["stderr"]
    assert "must return Message(reply_to=message)" in probe["wrong"][0]["error"]


def test_a_client_that_kills_its_actor_costs_nobody_else(probe: dict[str, Any]) -> None:
    assert [told.get("alive") for told in probe["die"]] == [1, None, 1, 1]
    assert "partition 1: evaluate.die failed: " in probe["stderr"]


def test_a_timeout_leaves_out_who_is_late(probe: dict[str, Any]) -> None:
    assert [told["awake"] for told in probe["sleep"]] == [0, 1, 3]
    assert "1 of 4 messages had no reply" in probe["stderr"]


def test_a_message_to_nobody_is_dropped_with_a_line(probe: dict[str, Any]) -> None:
    assert len(probe["unknown"]) == 1
    assert "there is no node 1" in probe["stderr"]


def test_draws_depend_on_node_and_call_only(probe: dict[str, Any]) -> None:
    drawn = [tuple(told["numbers"]) for told in probe["draw"] + probe["draw again"]]
    assert len(set(drawn)) == 8


@pytest.mark.slow
def test_two_runs_are_equal_even_where_the_app_does_not_seed(
    probe: dict[str, Any], tmp_path: Path
) -> None:
    told, _ = run_probe(tmp_path, "--workers", "1")
    for key in ("drawn", "draw", "draw again", "count", "nodes"):
        assert told[key] == probe[key]


WRONG_INPUT: dict[str, tuple[Callable[[str], str], tuple[str, ...], str]] = {
    "nothing there": (lambda _: "", (), "has no [tool.flwr.app]"),
    "not TOML": (lambda text: text + "[", (), "pyproject.toml: cannot be read: "),
    "no components": (
        lambda text: text.replace("app.components", "app.else"),
        (),
        "has no [tool.flwr.app.components]",
    ),
    "no clientapp": (lambda text: text.replace("clientapp", "client"), (), "has no clientapp"),
    "no attribute": (lambda text: text.replace("server:app", "server"), (), "module:attribute"),
    "a list": (lambda text: text + "more = []", (), "more: expected a bool, a number or a string"),
    "unknown key": (lambda text: text, ("nam=x",), "did you mean 'name'?"),
    "no key": (lambda text: text, ("name",), "expected key=value"),
    "other kind": (lambda text: text, ("answer.deep=many",), "expected a number"),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_input_is_one_line(case: str, tmp_path: Path) -> None:
    edit, overrides, told = WRONG_INPUT[case]
    write(tmp_path, {"pyproject.toml": edit(PYPROJECT)})
    with pytest.raises(ConfigError) as caught:
        read_app(tmp_path, overrides)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_app_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--app takes the folder of a Flower app"):
        read_app(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num-supernodes", 0], "expected 1 or more"),
        ([], "--app needs --num-supernodes"),
        (["--num-supernodes", 1, "--workers", 0], "--workers 0: expected 1 or more"),
        (["--num-supernodes", 1, "--resume"], "--resume does not go with --app"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    arguments: list[object], told: str, tmp_path: Path
) -> None:
    done = wildflower(tmp_path, "--app", write(tmp_path, PROBE), *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


SERVER = "from flwr.serverapp import ServerApp\napp = ServerApp()\n"
MAIN = f"{SERVER}@app.main()\ndef main(grid, context):\n    "
FAULTS = {
    "server raises": (
        {"server.py": f"{MAIN}raise KeyError('lost')"},
        1,
        "the ServerApp raised KeyError: 'lost' (server.py, line 5); traceback above",
    ),
    "server not importable": ({"server.py": "import no_such_thing"}, 2, "server.py, line 1"),
    "no such attribute": ({"server.py": "other = 1"}, 2, "no attribute 'app'"),
    "not an app": ({"server.py": "app = 1"}, 2, "expected a ServerApp, got int"),
    "old API": ({"server.py": SERVER}, 2, "has no @app.main()"),
    "client not importable": ({"clients/app.py": "1 / 0"}, 2, "clientapp clients.app:app: "),
    "no such module": ({"pyproject.toml": PYPROJECT.replace("server:", "serve:")}, 2, "serve"),
}


@pytest.mark.parametrize(
    "case",
    [
        "server raises",
        *(pytest.param(case, marks=pytest.mark.slow) for case in list(FAULTS)[1:]),
    ],
)
def test_a_faulty_app_is_one_line_at_the_end(case: str, tmp_path: Path) -> None:
    files, code, told = FAULTS[case]
    app = write(tmp_path / "app", {**PROBE, **files})
    done = wildflower(tmp_path, "--app", app, "--num-supernodes", 2)
    assert done.returncode == code, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert ("Traceback" in done.stderr) == (code == 1)


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False])
def test_ctrl_c_ends_the_run_with_130(to_all: bool, tmp_path: Path) -> None:
    server = f"{MAIN}import time; print('in', flush=True); time.sleep(99)"
    app = write(tmp_path / "app", {**PROBE, "server.py": server})
    with subprocess.Popen(
        [BIN / "wildflower", "simulate", "--app", app, "--num-supernodes", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        kill = os.killpg if to_all else os.kill
        kill(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in told


# The examples, what they leave, and how many nodes they get.
LEAVES = {
    "numpy-own-loop": "weights.npy",
    "personal-heads": "encoder.npz",
    "quickstart-pytorch": "final_model.pt",
}


def load_result(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if path.suffix == ".pt":
        return {name: value.numpy() for name, value in torch.load(path).items()}
    loaded = np.load(path)
    return dict(loaded) if path.suffix == ".npz" else {"": loaded}


def flat(value: Any, name: str = "") -> dict[str, float]:
    if not isinstance(value, dict | list):
        return {name: float(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: v for part, inner in items for key, v in flat(inner, f"{name}/{part}").items()}


def run_stock(cwd: Path, app: Path, nodes: int, *settings: str) -> None:
    cwd.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", ROOT / "tests" / "stock_flower.py", app, str(nodes), *settings],
        cwd=cwd,
        env={
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAVES)
def test_examples_equal_stock_flower(name: str, tmp_path: Path) -> None:
    app, nodes, settings = EXAMPLES / name, 6, "min-nodes=6"
    done = wildflower(tmp_path / "ours", "--app", app, "--num-supernodes", nodes, "-s", settings)
    assert done.returncode == 0, done.stderr
    run_stock(tmp_path / "stock", app, nodes, settings)
    arrays = [load_result(tmp_path / side / LEAVES[name]) for side in ("ours", "stock")]
    assert arrays[0].keys() == arrays[1].keys()
    for key, ours in arrays[0].items():
        np.testing.assert_allclose(ours, arrays[1][key], rtol=0, atol=1e-5)
    metrics = [
        flat(json.loads((tmp_path / side / "metrics.json").read_text()))
        for side in ("ours", "stock")
    ]
    assert metrics[0] == pytest.approx(metrics[1], rel=0, abs=1e-5)
    assert len(metrics[0]) > 10


@pytest.mark.slow
def test_the_script_for_stock_flower_does_what_flwr_run_does(
    flower: dict[str, str], tmp_path: Path
) -> None:
    app = EXAMPLES / "numpy-own-loop"
    run_stock(tmp_path / "script", app, 6, "min-nodes=6")
    (tmp_path / "run").mkdir()
    nodes = "num-supernodes=6 client-resources-num-cpus=1 init-args-num-cpus=2"
    options = ("--federation-config", nodes, "--run-config", "min-nodes=6")
    subprocess.run(
        [BIN / "flwr", "run", app, *options],
        cwd=tmp_path / "run",
        env=flower,
        check=True,
        capture_output=True,
    )
    wait_for(tmp_path / "run" / "metrics.json", flower, seconds=120)
    script, run = (np.load(tmp_path / side / "weights.npy") for side in ("script", "run"))
    np.testing.assert_allclose(script, run, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LEAVES)
def test_examples_say_how_to_run_them(name: str) -> None:
    told = (EXAMPLES / name / "README.md").read_text()
    assert f"wildflower simulate --app examples/flower-apps/{name} --num-supernodes 10" in told
    assert LEAVES[name] in told
    assert read_app(EXAMPLES / name).run_config["min-nodes"] == 10


def test_records_survive_packing_and_share_bytes_but_nothing_else() -> None:
    arrays = {"large": Array(np.arange(9000.0)), "small": Array(np.arange(3.0))}
    record = RecordDict({"a": ArrayRecord(arrays), "c": ConfigRecord({"x": [1, 2]})})
    skeleton, apart = pack(record)
    assert apart == [arrays["large"].data]
    assert apart[0] is arrays["large"].data
    assert len(skeleton) < 2000
    first, second = (unpack(skeleton, as_bytes(as_arrays(apart))) for _ in range(2))
    assert first == second == record
    first["c"]["x"].append(3)
    assert second["c"]["x"] == [1, 2]


class Desk:
    """A crew without actors: it answers with partition and call, and loses whom it is told to."""

    size = 2

    def __init__(self, loses: int) -> None:
        self.loses = loses
        self.groups: list[list[int]] = []

    def map(self, jobs: Iterable[Job]) -> Iterator[Any]:
        for job in jobs:
            requests, arrays = job.args
            self.groups.append([partition for _, (_, partition, _), _ in requests])
            lost = self.loses in self.groups[-1]
            answers = [self.answer(arrays, *request) for request in requests]
            yield Lost("its process died") if lost else (1e-6, answers)

    @staticmethod
    def answer(arrays: list[Any], skeleton: bytes, call: tuple[int, int, int], _: None) -> Any:
        message = unpack(skeleton, as_bytes(arrays))
        told = RecordDict({"told": ConfigRecord({"partition": call[1], "call": call[2]})})
        packed, apart = pack(Message(told, reply_to=message))
        return (packed, as_arrays(apart)), None


def test_quick_messages_go_in_groups_and_only_the_culprit_is_lost() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    notices: list[str] = []
    desk = Desk(loses=13)
    grid = AppGrid(desk, 40, Run.create_empty(1), notices.append)  # type: ignore[arg-type]
    replies = grid.send_and_receive(Message(RecordDict(), n, "query") for n in grid.get_node_ids())
    told = [r.content["told"] if r.has_content() else r.error.reason for r in replies]
    assert told == [
        {"partition": n, "call": 1} if n != 13 else "its process died" for n in range(40)
    ]
    assert notices == ["partition 13: query failed: its process died"]
    assert desk.groups[0] == [0]  # nothing is known yet
    assert max(map(len, desk.groups)) == 9
    assert len(desk.groups) < 30
    assert grid.tally == Tally(messages=40, failed=1)


class Item:
    """Something that can be watched."""


def test_replies_are_kept_only_while_the_list_is_held() -> None:
    watched = []
    for item in Replies(Item() for _ in range(3)):
        watched.append(weakref.ref(item))
        del item
        gc.collect()
        assert watched[-1]() is None
    held = Replies(Item() for _ in range(3))
    assert [*held] == [*held] == held[:]
    assert held


def test_replies_are_made_when_they_are_looked_at() -> None:
    made: list[int] = []
    replies = Replies(made.append(n) or n for n in range(5))  # type: ignore[func-returns-value]
    walk = iter(replies)
    assert made == []
    assert (next(walk), next(walk)) == (0, 1)
    assert made == [0, 1]
    assert (len(replies), list(walk)) == (5, [2, 3, 4])

"""Federated calibration: ranges are measured by clients, merged, written down, and resumed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message

from clients.host import Host, open_host
from clients.training import ClientData
from deploy.cli import run
from server.app import _open
from server.calibration import answer_check, ask, describe, make_requests, require_quorum
from server.population import merge_hellos
from server.range_noise import Noise, deviation_of, noised
from shared_models.config import CalibrateStage, Config, parse_config
from shared_models.errors import ConfigError, InputError, RoundError
from shared_models.messages import BlockFailure, BlockRequest, Reply, Send
from shared_models.partial import Partial
from shared_models.ranges import Range, merge, ranges_of, traced, values_of
from shared_models.verbs import CALIBRATE_BLOCK
from tests.conftest import DIGITS
from tests.fleet_in_memory import fleet, train
from tests.test_runs import command, wildflower

STAGE = '\n[[stages]]\nkind = "calibrate"\n'
Tamper = Callable[[BlockRequest, Partial], Reply]


def opened(*overrides: str) -> tuple[Config, Host, CalibrateStage]:
    config = parse_config(DIGITS + STAGE, "test", overrides=overrides)
    assert config.calibrate_stage is not None
    return config, open_host(config), config.calibrate_stage


def sending(host: Host, tamper: Tamper = lambda _, partial: partial) -> Send:
    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        calibrate = host.calibrator("calibrate")
        return (tamper(request, calibrate(request, host.data_of)) for request in requests)

    return send


def told(config: Config, host: Host, send: Send) -> dict[str, Any]:
    """What the stage would write down, of an untrained model."""
    stage = config.calibrate_stage
    assert stage is not None
    population = merge_hellos({1: host.hello()})
    requests = make_requests(config, stage, population, host.task.build(0))
    check = answer_check(stage, host.task, population)
    return describe(stage, ask(requests, send, check), host.task)


def test_what_clients_tell_is_the_range_over_all_their_examples() -> None:
    config, host, _ = opened("stages.calibrate.examples_per_client=1000")
    graph = traced(host.task.model(0))
    examples = [host.data_of(client_id).x for client_id in host.client_ids]
    x = torch.from_numpy(np.concatenate(examples))
    found = told(config, host, sending(host))
    assert found["clients_answered"] == found["clients_asked"] == 12
    for name, own in ranges_of(values_of(graph, x)).items():
        assert found["ranges"][name] == pytest.approx([own.low, own.high], rel=1e-5)


def test_each_client_gives_a_few_examples_and_few_clients_are_asked() -> None:
    config, host, _ = opened("stages.calibrate.examples_per_client=2", "stages.calibrate.clients=5")
    whole, same, _ = opened()
    few, all_ = told(config, host, sending(host)), told(whole, same, sending(same))
    assert few["clients_asked"] == 5
    assert few["ranges"]["head"][1] < all_["ranges"]["head"][1]
    assert few == told(config, host, sending(host))


def test_blocks_do_not_matter() -> None:
    one, host, _ = opened("plan.block_size=1", "stages.calibrate.method=percentile")
    all_, same, _ = opened("plan.block_size=12", "stages.calibrate.method=percentile")
    assert told(one, host, sending(host)) == told(all_, same, sending(same))


def test_a_percentile_cuts_ends_off() -> None:
    config, host, _ = opened("stages.calibrate.method=percentile")
    tight, _, _ = opened("stages.calibrate.method=percentile", "stages.calibrate.percentile=95.0")
    whole, _, _ = opened()
    ends = [
        told(own, open_host(own), sending(open_host(own)))["ranges"]["head"][1]
        for own in (tight, config, whole)
    ]
    assert ends == sorted(ends)
    assert ends[0] < ends[2]
    assert told(config, host, sending(host))["percentile"] == 99.99


def spoiled(place: int, low: float, high: float) -> Tamper:
    """One client of a block lies about one value."""

    def tamper(request: BlockRequest, partial: Partial) -> Reply:
        if 7 not in request.client_ids:
            return partial
        k = request.client_ids.index(7)
        ranges = {name: own.clone() for name, own in partial.singles["ranges"].items()}
        name = list(ranges)[place]
        ranges[name][k] = torch.tensor([low, high])
        return replace(partial, singles={**partial.singles, "ranges": ranges})

    return tamper


@pytest.mark.parametrize(
    ("low", "high"), [(math.nan, 1.0), (0.0, math.inf), (1.0, -1.0), (-1e30, 1.0), (0.0, 1e9)]
)
def test_absurd_ranges_are_refused_by_name_and_the_others_count(low: float, high: float) -> None:
    config, host, _ = opened()
    found = told(config, host, sending(host, spoiled(2, low, high)))
    (failure,) = found["failures"]
    assert (failure["client_id"], failure["status"]) == (7, "refused")
    assert "client 7: value encoder_conv_relu lies in" in failure["reason"]
    assert found["clients_answered"] == 11
    assert all(math.isfinite(end) for ends in found["ranges"].values() for end in ends)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: replace(p, singles={}), "expected"),
        (lambda p: replace(p, rows=p.rows[1:]), "other clients"),
        (lambda p: replace(p, sums={"x": None}), "more than ranges"),
        (lambda p: replace(p, rows=(replace(p.rows[0], examples=9), *p.rows[1:])), "claims 9"),
        (
            lambda p: replace(p, singles={"ranges": {"x": p.singles["ranges"]["x"]}}),
            "other values than the model has",
        ),
        (
            lambda p: replace(
                p, singles={"ranges": {k: v.double() for k, v in p.singles["ranges"].items()}}
            ),
            "float64",
        ),
    ],
)
def test_answers_of_another_form_are_refused(
    change: Callable[[Partial], Partial], why: str
) -> None:
    config, host, _ = opened("plan.block_size=1")

    def tamper(request: BlockRequest, partial: Partial) -> Reply:
        return change(partial) if request.client_ids == (3,) else partial

    found = told(config, host, sending(host, tamper))
    (failure,) = found["failures"]
    assert failure["client_id"] == 3
    assert why in failure["reason"]


def test_impossible_counts_are_refused() -> None:
    config, host, _ = opened("plan.block_size=1", "stages.calibrate.method=percentile")

    def tamper(request: BlockRequest, partial: Partial) -> Reply:
        counts = {name: own.clone() for name, own in partial.singles["counts"].items()}
        counts["x"][0, 0] += -5 if request.client_ids == (3,) else 1
        bad = request.client_ids in {(3,), (4,)}
        return replace(partial, singles={**partial.singles, "counts": counts}) if bad else partial

    found = told(config, host, sending(host, tamper))
    assert [failure["client_id"] for failure in found["failures"]] == [3, 4]
    assert "value x: its counts are not those of" in found["failures"][0]["reason"]


def test_a_client_whose_data_is_broken_says_so_itself() -> None:
    config, host, _ = opened()

    def data_of(client_id: int) -> ClientData:
        own = host.data_of(client_id)
        return replace(own, x=np.full_like(own.x, np.nan)) if client_id == 2 else own

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        return (host.calibrator("calibrate")(request, data_of) for request in requests)

    (failure,) = told(config, host, send)["failures"]
    assert (failure["client_id"], failure["status"]) == (2, "refused")
    assert "value x lies in [nan, nan]" in failure["reason"]


def test_too_few_clients_fail_the_stage(digits_toml: Path, tmp_path: Path) -> None:
    config, host, _ = opened()

    gone = BlockFailure("sensor unplugged")
    found = told(config, host, sending(host, lambda r, p: p if 0 in r.client_ids else gone))
    assert found["clients_answered"] == 4
    digits_toml.write_text(DIGITS + STAGE + "max_range = 0.001\n")
    assert run(["simulate", str(digits_toml), "--out", str(tmp_path / "run")]) == 1


def test_noise_keeps_its_promise_in_numbers() -> None:
    for epsilon, expected in ((0.5, 6.94), (1.0, 3.73), (8.0, 0.60)):
        found = deviation_of(1.0, Noise(epsilon, 1e-5, 0.25, 64.0))
        assert found == pytest.approx(expected, rel=0.02)
    assert deviation_of(3.0, Noise(1.0, 1e-5, 0.25, 64.0)) == pytest.approx(3 * 3.7303, rel=1e-3)


def test_noise_of_a_large_epsilon_is_the_mean_of_the_clients_ends() -> None:
    noise = Noise(1e6, 1e-5, 0.25, 64.0)
    clients = [{"v": Range(-4.0, high)} for high in (8.0, 32.0)]
    found = noised(clients, noise, np.random.default_rng(0))["v"]
    assert found.low == pytest.approx(-4.0, rel=0.05)
    assert found.high == pytest.approx(16.0, rel=0.05)


def test_a_client_moves_what_is_noised_by_no_more_than_the_sensitivity() -> None:
    noise = Noise(1e6, 1e-5, 0.25, 64.0)
    others = [{"v": Range(-1.0, 1.0), "w": Range(0.0, 2.0)}] * 9
    wild = {"v": Range(-1e30, 1e30), "w": Range(-1e30, 1e30)}
    tame = {"v": Range(0.0, 0.0), "w": Range(0.0, 0.0)}
    with_wild, with_tame = (
        noised([*others, own], noise, np.random.default_rng(0)) for own in (wild, tame)
    )
    moved = [
        math.log(getattr(with_wild[name], end) / getattr(with_tame[name], end)) / math.log(256.0)
        for name in "vw"
        for end in ("low", "high")
    ]
    assert math.hypot(*moved) <= math.sqrt(4) / 10 + 1e-6


def test_noise_is_drawn_anew_and_told() -> None:
    config, host, _ = opened("stages.calibrate.noise_epsilon=8.0")
    one, two = told(config, host, sending(host)), told(config, host, sending(host))
    assert one["noise"] == {
        "mechanism": "gaussian",
        "epsilon": 8.0,
        "delta": 1e-5,
        "floor": 0.25,
        "ceiling": 64.0,
    }
    assert one["ranges"] != two["ranges"]
    assert "epsilon 8, delta 1e-05" in one["text"]


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        (STAGE + DIGITS[DIGITS.index("[[stages]]") :], "needs a train stage before it"),
        (
            DIGITS[DIGITS.index("[[stages]]") :] + STAGE + STAGE + 'name = "again"\n',
            "one calibrate stage is enough",
        ),
    ],
)
def test_stages_in_another_order_are_refused(stages: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config(DIGITS[: DIGITS.index("[[stages]]")] + stages, "test")


def test_a_part_whose_input_is_drawn_is_not_calibrated_by_clients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = np.zeros((24, 1, 28, 28), np.float32), np.arange(24) % 10
    np.savez(tmp_path / "images.npz", x=x, y=y, x_test=x, y_test=y)
    config = tmp_path / "gan.toml"
    text = DIGITS.replace("digits-cnn", "mnist-gan") + STAGE + '\n[[stages]]\nkind = "export"\n'
    config.write_text(text.replace("[data]", f'[data]\nname = "{tmp_path / "images.npz"}"'))
    assert run(["simulate", str(config), "--out", str(tmp_path / "run")]) == 2
    assert "'mnist-gan' only 'generator' is exported" in capsys.readouterr().err
    with pytest.raises(InputError, match="clients have no data for it"):  # a fleet's server
        _open({"config": config.read_text()}, tmp_path / "run", lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("stages.calibrate.percentile=99.0", "contradicts method 'minmax'"),
        ("stages.train.personal=['head.']", "contradicts the calibrate stage"),
        ("stages.calibrate.noise_floor=100.0", "must be less than noise_ceiling"),
    ],
)
def test_contradictions_are_refused(override: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        opened(override)
    with pytest.raises(ConfigError, match="only minmax has noise"):
        opened("stages.calibrate.method=percentile", "stages.calibrate.noise_epsilon=1.0")


def calibrated(config: Path, out: Path, *more: str) -> dict[str, Any]:
    assert run(["simulate", str(config), "--out", str(out), *more]) == 0
    found: dict[str, Any] = json.loads((out / "calibration.json").read_text())
    return found


@pytest.fixture
def calibrate_toml(digits_toml: Path) -> Path:
    digits_toml.write_text(DIGITS + STAGE + 'method = "percentile"\n')
    return digits_toml


def test_engines_and_workers_write_the_same_file(calibrate_toml: Path, tmp_path: Path) -> None:
    inline = calibrated(calibrate_toml, tmp_path / "inline")
    more = ("-s", "engine=ray", "-s", "workers=2")
    done = wildflower("simulate", calibrate_toml, "--out", tmp_path / "ray", *more)
    assert done.returncode == 0, done.stderr
    ray = json.loads((tmp_path / "ray" / "calibration.json").read_text())
    assert inline == ray
    assert inline["text"] == "federated, 12 clients, percentile 99.99"


def test_a_fleet_calibrates_and_names_the_clients_of_a_node_that_cannot(tmp_path: Path) -> None:
    config = parse_config(DIGITS + STAGE, "test", overrides=("stages.train.rounds=1",))
    grid = fleet(config, 11, 22)
    honest = grid.nodes[22]

    def unable(message: Message) -> Message | None:
        if message.metadata.message_type != CALIBRATE_BLOCK:
            return honest(message)
        reply = Message(Error(0, "sensor unplugged"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 22
        return reply

    grid.nodes[22] = unable
    folder, notices = train(config, grid, tmp_path / "run")
    found = json.loads(folder.calibration_file.read_text())
    assert (found["clients_asked"], found["clients_answered"]) == (12, 6)
    assert [failure["client_id"] for failure in found["failures"]] == [1, 3, 5, 7, 9, 11]
    assert {failure["status"] for failure in found["failures"]} == {"failed"}
    assert "sensor unplugged" in found["failures"][0]["reason"]
    assert notices[-1] == "calibrate: federated, 6 clients, minmax"


def test_a_run_that_is_killed_while_it_calibrates_ends_in_the_same_file(
    calibrate_toml: Path, tmp_path: Path
) -> None:
    alone = calibrated(calibrate_toml, tmp_path / "alone")
    out = tmp_path / "killed"
    # It stands still before it writes, so that the kill comes in the middle of the stage.
    slow = (
        "import server.calibration as c, time\nc.write_json = lambda path, value: time.sleep(600)"
    )
    process = subprocess.Popen(command("simulate", calibrate_toml, "--out", out, first=slow))
    until = time.monotonic() + 60
    while not (out / "model.safetensors").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "calibration.json").exists()
    done = wildflower("simulate", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "calibration.json").read_text()) == alone


def test_a_resumed_run_keeps_noise_that_was_written_down(digits_toml: Path, tmp_path: Path) -> None:
    digits_toml.write_text(DIGITS + STAGE + "noise_epsilon = 4.0\n")
    out = tmp_path / "run"
    first = calibrated(digits_toml, out)
    assert run(["simulate", str(out), "--resume"]) == 0
    assert json.loads((out / "calibration.json").read_text()) == first


def test_what_a_relu_gives_begins_at_zero_whatever_noise_or_a_liar_says() -> None:
    config, host, _ = opened("stages.calibrate.noise_epsilon=1.0")
    liar, same, _ = opened("plan.block_size=1")
    noisy = told(config, host, sending(host))["ranges"]
    lied = told(liar, same, sending(same, spoiled(2, -7.0, 8.0)))["ranges"]
    for found in (noisy, lied):
        for name in ("encoder_conv_relu", "encoder_pool", "encoder_flatten", "encoder_dense_relu"):
            assert found[name][0] == 0.0
    assert noisy["encoder_conv"][0] < 0.0
    assert lied["encoder_conv_relu"][1] == 8.0


def test_merging_is_what_the_server_does() -> None:
    config, host, stage = opened()
    population = merge_hellos({1: host.hello()})
    requests = make_requests(config, stage, population, host.task.build(0))
    answers = ask(requests, sending(host), answer_check(stage, host.task, population))
    merged = {k: [own.low, own.high] for k, own in merge(answers.ranges[::-1]).items()}
    assert merged == describe(stage, answers, host.task)["ranges"]


def test_nobody_left_is_an_error_that_names_one() -> None:
    config, host, _ = opened()
    stage = config.calibrate_stage
    assert stage is not None
    population = merge_hellos({1: host.hello()})
    requests = make_requests(config, stage, population, host.task.build(0))
    send = sending(host, lambda _r, _p: BlockFailure("sensor unplugged"))
    answers = ask(requests, send, answer_check(stage, host.task, population))
    with pytest.raises(RoundError, match=r"none of 12 clients told their ranges.*client 0: sensor"):
        require_quorum(stage, answers.rows)

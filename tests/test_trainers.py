"""Every trainer means the same as the plain loop."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.kernels.compiled import CompiledLastState, find_compiler, library
from clients.kernels.recurrent import LastState
from clients.trainers import TRAINERS, make_trainer
from clients.training import ClientData, Training, Unfit
from shared_models.arrays import Arrays, global_norm, in_dtype, roles_of, scaled, subtract
from shared_models.errors import InputError, UpdateError
from shared_models.gradients import by_autograd
from shared_models.inputs import InputSpec
from shared_models.messages import BlockRequest
from shared_models.noise import Dropout, noise_of
from shared_models.objectives import Batch
from shared_models.objectives.adversarial import Attack, adversarial
from shared_models.objectives.choice import MakeObjective
from shared_models.objectives.ditto import ditto
from shared_models.objectives.fednova import fednova
from shared_models.objectives.fedprox import fedprox
from shared_models.objectives.scaffold import scaffold
from shared_models.objectives.supervised import supervised
from shared_models.optimizers import Optimizer
from shared_models.optimizers.adamw import adamw
from shared_models.optimizers.clip import clip_by_norm
from shared_models.optimizers.momentum import momentum
from shared_models.optimizers.sgd import sgd
from shared_models.partial import Partial
from shared_models.task import Task
from shared_models.tasks import TASKS, load_task

SIZES = (7, 4, 9, 4, 1)  # unequal, with last batches of 1, 2 and 3


def training_of(task: Task, optimizer: Optimizer | None = None, **changes: object) -> Training:
    made = Training(
        task=task,
        make_objective=task.objective,
        optimizer=optimizer or sgd(0.1),
        roles=roles_of(task.model()),
        seed=0,
        epochs=2,
        batch_size=3,
        max_update_norm=1000.0,
        dtype=torch.float64,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def data_for(task: Task, sizes: Sequence[int] = SIZES) -> Callable[[int], ClientData]:
    def data_of(client_id: int) -> ClientData:
        rng, n = np.random.default_rng(client_id), sizes[client_id]
        shape = (n, *task.input.shape)
        tokens = rng.integers(task.input.tokens, size=shape) if task.input.tokens else None
        x = rng.random(shape).astype(np.float32) if tokens is None else tokens
        return ClientData(x, labels_for(task, rng, n))

    return data_of


def labels_for(task: Task, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    if task.answer != "boxes":
        return rng.integers(len(task.labels) or 10, size=(n, *task.label_shape))
    corners = rng.integers(40, size=(n, task.label_shape[0], 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 24, size=corners.shape)], axis=2)
    boxes[:, 3:] = 0
    return boxes


def request_for(task: Task, params: Arrays | None = None) -> BlockRequest:
    ids = tuple(range(len(SIZES)))
    return BlockRequest("train", 1, 0, 0, ids, params or task.build(0))


def partial_of(name: str, training: Training) -> Partial:
    task = training.task
    return TRAINERS[name](training)(request_for(task), data_for(task))


def fits(name: str, training: Training) -> bool:
    try:
        TRAINERS[name](training)
    except Unfit:
        return False
    return True


FAST = [name for name in TRAINERS if name != "loop"]
# Layers without a kernel of their own.
UNFIT = {("fused", "text-rnn"), ("fused", "watch-cnn")}
DENSE = ("mnist-unet", "fashion-unet", "trees-detector")
UNFIT |= {("fused", name) for name in DENSE}
UNFIT |= {("fused", "mnist-gan"), ("reused", "mnist-gan")}
# Its model tells more in training than its task's loss takes.
UNFIT |= {("reused", "mnist-vae")}


@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("name", FAST)
def test_a_trainer_equals_the_plain_loop(name: str, task_name: str) -> None:
    training = training_of(load_task(task_name))
    if not fits(name, training):
        by_hand = name == "low_rank" or (name == "fused" and training.task.answer != "classes")
        assert by_hand or (name, task_name) in UNFIT
        assert task_name != "mnist-2nn"
        return
    ours, theirs = partial_of(name, training), partial_of("loop", training)
    for key, part in theirs.sums.items():
        assert ours.sums[key].weight == part.weight
        torch.testing.assert_close(ours.sums[key].arrays, part.arrays, rtol=1e-9, atol=1e-12)
    for mine, yours in zip(ours.rows, theirs.rows, strict=True):
        assert mine.metrics["loss"] == pytest.approx(yours.metrics["loss"], rel=1e-9)
        assert replace(mine, metrics={}) == replace(yours, metrics={})


class Noisy(nn.Module):
    """A dropout between two dense layers, with running statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            OrderedDict(
                flat=nn.Flatten(),
                dense=nn.Linear(64, 12),
                norm=nn.BatchNorm1d(12),
                relu=nn.ReLU(),
                dropout=Dropout(0.5, (12,)),
            )
        )
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


@pytest.mark.parametrize("name", ["reused", "vectorised"])
@pytest.mark.parametrize(
    "optimizer",
    [
        sgd(0.1),
        momentum(0.1, 0.9),
        clip_by_norm(0.5, sgd(0.1)),
        # A bias before BatchNorm has rounding for a gradient: a small epsilon would magnify it.
        adamw(0.01, 0.1, epsilon=1e-3),
    ],
    ids=["sgd", "momentum", "clipped", "adamw"],
)
def test_noise_statistics_and_any_optimizer_are_the_loops(name: str, optimizer: Optimizer) -> None:
    task = replace(load_task("digits-cnn"), make_model=Noisy)
    # BatchNorm needs two examples: no client of this test has a last batch of one.
    training = training_of(task, optimizer, batch_size=4)
    assert not fits("fused", training)
    request = replace(request_for(task), client_ids=(0, 1, 3))
    ours, theirs = (
        TRAINERS[n](training)(request, data_for(task, (7, 4, 9, 6, 1))) for n in (name, "loop")
    )
    assert all(row.status == "ok" for row in theirs.rows)
    for key, part in theirs.sums.items():
        torch.testing.assert_close(ours.sums[key].arrays, part.arrays, rtol=1e-9, atol=1e-12)


MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "noisy": ("digits-cnn", (7, 4, 10, 6)),
    "digits-cnn": ("digits-cnn", (7, 4, 9, 1)),
    "mnist-2nn": ("mnist-2nn", (7, 4, 9, 1)),
    "watch-lstm": ("watch-lstm", (5, 2, 4, 1)),
}
CHOSEN: dict[str, MakeObjective] = {
    "fedavg": supervised,
    "fedprox": functools.partial(fedprox, mu=0.5),
    "scaffold": scaffold,
    "fednova": functools.partial(fednova, momentum=0.9),
    "ditto": functools.partial(ditto, strength=0.5),
    "adversarial": functools.partial(adversarial, attack=Attack(0.1, 3)),
}


def training_with(objective: str, model: str, personal: tuple[str, ...] = ()) -> Training:
    task = load_task(MODELS[model][0])
    task = replace(task, make_model=Noisy) if model == "noisy" else task
    return training_of(
        task,
        momentum(0.1, 0.9) if objective == "fednova" else sgd(0.1),
        make_objective=CHOSEN[objective],
        roles=roles_of(task.model(), personal),
        batch_size=4,
    )


def in_round_two(training: Training, request: BlockRequest, first: Partial) -> BlockRequest:
    """Asks the clients once more, one of them as if it had not been there before."""
    server = training.objective(by_autograd).server
    means = {name: scaled(s.arrays, 1 / s.weight) for name, s in first.sums.items()}
    _, extras = server.absorb(means, dict(request.extras), 1.0)
    states = {k: state for k, state in first.states.items() if k != 1}
    return replace(request, round=2, extras=extras, states=states)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("objective", "personal"),
    [*((name, ()) for name in CHOSEN), ("fedavg", ("head.",)), ("scaffold", ("encoder.norm.",))],
)
def test_every_objective_is_the_loops_when_vectorised(
    objective: str, personal: tuple[str, ...], model: str
) -> None:
    if personal == ("encoder.norm.",) and model != "noisy":
        return
    training, sizes = training_with(objective, model, personal), MODELS[model][1]
    data, params = data_for(training.task, sizes), training.task.build(0)
    extras = training.objective(by_autograd).server.init(params)
    ids = tuple(range(len(sizes)))
    request = BlockRequest("train", 1, 0, 0, ids, params, extras=extras)
    loop, vectorised = (TRAINERS[name](training) for name in ("loop", "vectorised"))
    request = in_round_two(training, request, loop(request, data))
    ours, theirs = vectorised(request, data), loop(request, data)
    assert [row.status for row in theirs.rows] == ["ok"] * len(sizes)
    assert set(ours.states) == set(theirs.states)
    torch.testing.assert_close(
        ({n: s.arrays for n, s in ours.sums.items()}, ours.states),
        ({n: s.arrays for n, s in theirs.sums.items()}, theirs.states),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("objective", [name for name in CHOSEN if name != "fedavg"])
@pytest.mark.parametrize("name", ["reused", "fused", "low_rank"])
def test_who_only_descends_refuses_an_objective_that_does_more(name: str, objective: str) -> None:
    with pytest.raises(Unfit, match="its objective does more than descend on the task's loss"):
        TRAINERS[name](training_with(objective, "mnist-2nn"))


def test_dropout_differs_by_client_and_round_but_not_by_who_trains() -> None:
    task = replace(load_task("digits-cnn"), make_model=Noisy)
    training = training_of(task, batch_size=4)
    data = data_for(task, (8,) * 5)

    def alike(client_id: int) -> ClientData:
        del client_id
        return data(0)

    def delta(client_id: int, number: int) -> Tensor:
        request = replace(request_for(task), client_ids=(client_id,), round=number)
        return TRAINERS["loop"](training)(request, alike).sums["delta"].arrays["head.weight"]

    assert torch.equal(delta(1, 1), delta(1, 1))
    assert not torch.equal(delta(1, 1), delta(2, 1))
    assert not torch.equal(delta(1, 1), delta(1, 2))


@pytest.mark.parametrize("task_name", ["mnist-2nn", "digits-cnn", "watch-lstm"])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_bad_client_is_named_alike_and_changes_nobody_else(name: str, task_name: str) -> None:
    task = load_task(task_name)
    training = training_of(task)
    if not fits(name, training):
        return
    good = data_for(task)

    def data_of(client_id: int) -> ClientData:
        if client_id == 3:
            raise OSError("sensor unplugged")
        own = good(client_id)
        return replace(own, x=own.x * float("nan")) if client_id == 1 else own

    partial = TRAINERS[name](training)(request_for(task), data_of)
    assert [row.status for row in partial.rows] == ["ok", "refused", "ok", "failed", "ok"]
    assert "NaN" in partial.rows[1].reason or "nan" in partial.rows[1].reason
    assert partial.rows[3].reason == "OSError: sensor unplugged"
    without = replace(request_for(task), client_ids=(0, 2, 4))
    expected = TRAINERS["loop"](training)(without, good).sums["delta"]
    torch.testing.assert_close(partial.sums["delta"].arrays, expected.arrays)
    assert partial.sums["delta"].weight == expected.weight


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_refuses_whose_examples_are_unfit(name: str) -> None:
    task = load_task("mnist-2nn")
    good = data_for(task)

    def data_of(client_id: int) -> ClientData:
        if client_id == 3:
            raise UpdateError("its labels are not numbers")
        return good(client_id)

    row = TRAINERS[name](training_of(task))(request_for(task), data_of).rows[3]
    assert (row.status, row.reason) == ("refused", "its labels are not numbers")


@pytest.mark.parametrize("name", TRAINERS)
def test_the_bound_on_the_norm_holds_for_every_trainer(name: str) -> None:
    task = load_task("mnist-2nn")
    norms = {
        row.client_id: float(
            global_norm(
                TRAINERS["loop"](training_of(task))(
                    replace(request_for(task), client_ids=(row.client_id,)), data_for(task)
                )
                .sums["delta"]
                .arrays
            )
            / row.examples
        )
        for row in partial_of("loop", training_of(task)).rows
    }
    bound = sorted(norms.values())[2] * 1.0001
    rows = partial_of(name, training_of(task, max_update_norm=bound)).rows
    assert [row.status == "ok" for row in rows] == [norms[r.client_id] <= bound for r in rows]
    assert sum(row.status == "ok" for row in rows) == 3


@pytest.mark.parametrize("task_name", TASKS)
def test_in_float32_trainers_differ_by_rounding(task_name: str) -> None:
    task = load_task(task_name)
    # Norms over batches of three multiply what rounding began; in float64 they agree as all do.
    norms = "averaged" in roles_of(task.model()).values()
    training = training_of(task, dtype=torch.float32)
    theirs = partial_of("loop", training).sums["delta"].arrays
    scale = float(global_norm(theirs))
    exact = partial_of("loop", training_of(task)).sums["delta"].arrays
    # Where rounding turns a ReLU or a pool over in the plain loop, it does in the others, too.
    rounding = float(global_norm(subtract(in_dtype(exact, torch.float32), theirs)))
    for name in FAST:
        if fits(name, training):
            ours = partial_of(name, training).sums["delta"].arrays
            allowed = max((5e-2 if norms else 2e-5) * scale, 20 * rounding)
            assert float(global_norm(subtract(ours, theirs))) < allowed, name


def test_bfloat16_is_an_approximation_of_the_same() -> None:
    training = training_of(load_task("digits-cnn"), dtype=torch.float32)
    lower = replace(training, autocast=torch.bfloat16)
    theirs = partial_of("loop", training).sums["delta"].arrays
    for name in ("loop", "reused", "vectorised"):
        ours = partial_of(name, lower).sums["delta"].arrays
        assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
        gap = float(global_norm(subtract(ours, theirs)) / global_norm(theirs))
        assert 1e-5 < gap < 0.1, name
    assert not fits("fused", lower)


def test_a_trainer_that_cannot_says_why() -> None:
    training = training_of(load_task("digits-cnn"), momentum(0.1, 0.9))
    with pytest.raises(InputError, match=r"plan.trainer: 'fused' cannot .* optimiser does more"):
        make_trainer("fused", training)
    with pytest.raises(InputError, match=r"layer encoder.conv \(Conv2d\) is not dense"):
        make_trainer("low_rank", training_of(load_task("digits-cnn")))
    for odd in ({"batch_first": False}, {"dropout": 0.5, "num_layers": 2}, {"bidirectional": True}):
        task = replace(load_task("watch-lstm"), make_model=functools.partial(Recurrent, odd))
        with pytest.raises(InputError, match=r"layer encoder \(LSTM\) is not batch_first=True"):
            make_trainer("vectorised", training_of(task))


class Recurrent(nn.Module):
    """A classifier of windows by an LSTM that is made in another way."""

    def __init__(self, how: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = nn.LSTM(6, 4, **{"batch_first": True, **how})
        self.head = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x)[0][:, -1])
        return logits


@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler here")
def test_the_lstm_in_c_is_torchs() -> None:
    training = training_of(load_task("watch-lstm"), dtype=torch.float32, compiled=True)
    theirs = partial_of("loop", replace(training, compiled=False))
    ours = partial_of("fused", training)
    arrays = theirs.sums["delta"].arrays
    gap = global_norm(subtract(ours.sums["delta"].arrays, arrays)) / global_norm(arrays)
    assert float(gap) < 2e-6
    assert [row.status for row in ours.rows] == ["ok"] * len(SIZES)


@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler here")
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (13, 7, 5, 48), (3, 20, 9, 64)])
def test_the_lstm_in_c_takes_any_shape(shape: tuple[int, int, int, int]) -> None:
    rows, time, inputs, width = shape
    source = torch.Generator().manual_seed(0)
    lstm = nn.LSTM(inputs, width, batch_first=True)
    x = torch.randn(rows, time, inputs, generator=source)
    slope = torch.randn(rows, width, generator=source)
    ours, theirs = ([p.detach().clone() for p in lstm.parameters()] for _ in range(2))
    kernels = CompiledLastState(ours, 0.5), LastState(theirs, 0.5, wanted=False)
    outputs = []
    for kernel in kernels:
        outputs.append(kernel.forward(x))
        kernel.backward(slope)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler here")
def test_the_lstm_in_c_lets_no_nan_hide() -> None:
    lstm = nn.LSTM(3, 16, batch_first=True)
    weights = [p.detach().clone() for p in lstm.parameters()]
    x = torch.randn(2, 5, 3)
    # Some hardware makes a NaN with more bits set than Python's.
    x[1, 2, 0] = torch.tensor([0x7FC001FF], dtype=torch.int32).view(torch.float32)[0]
    last = CompiledLastState(weights, 0.1).forward(x)
    assert bool(torch.isfinite(last[0]).all())
    assert bool(torch.isnan(last[1]).all())


def test_only_what_has_a_compiled_kernel_is_compiled() -> None:
    assert not fits("fused", training_of(load_task("watch-lstm"), compiled=True)), "in float64"
    single = training_of(load_task("mnist-2nn"), dtype=torch.float32, compiled=True)
    assert not fits("fused", single)


class Seeing(nn.Module):
    """Convolutions of every kind that has a kernel: strides, holes, groups, padding, no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.ReLU(),
        )
        self.head = nn.Linear(6 * 2 * 3, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_fused_convolutions_of_every_kind_are_the_loops(channels: int) -> None:
    inputs = InputSpec(shape=(channels, 8, 8))
    task = replace(load_task("digits-cnn"), input=inputs, make_model=lambda: Seeing(channels))
    training = training_of(task)
    ours, theirs = (partial_of(name, training).sums["delta"] for name in ("fused", "loop"))
    assert ours.weight == theirs.weight > 0
    torch.testing.assert_close(ours.arrays, theirs.arrays, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_client_whose_training_raises_fails_alone(name: str) -> None:
    task = load_task("mnist-2nn")
    good = data_for(task)

    def data_of(client_id: int) -> ClientData:
        own = good(client_id)
        return replace(own, y=own.y + 10) if client_id == 1 else own  # there is no such label

    partial = TRAINERS[name](training_of(task))(request_for(task), data_of)
    assert [row.status for row in partial.rows] == ["ok", "failed", "ok", "ok", "ok"]
    without = replace(request_for(task), client_ids=(0, 2, 3, 4))
    expected = TRAINERS["loop"](training_of(task))(without, good).sums["delta"]
    torch.testing.assert_close(partial.sums["delta"].arrays, expected.arrays)


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler here")
def test_the_compiled_vectorised_trainer_equals_the_loop() -> None:
    training = training_of(load_task("digits-cnn"), compiled=True)
    ours = partial_of("vectorised", training).sums["delta"]
    theirs = partial_of("loop", replace(training, compiled=False)).sums["delta"]
    torch.testing.assert_close(ours.arrays, theirs.arrays, rtol=1e-9, atol=1e-12)


def test_dropout_masks_are_made_where_the_examples_are() -> None:
    batch = Batch(torch.zeros(2, 64, device="meta"), torch.zeros(2, device="meta"))
    noise = noise_of(Noisy())(np.random.default_rng(0), batch)
    assert {mask.device.type for mask in noise.values()} == {"meta"}


@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler here")
def test_a_cache_that_cannot_be_written_is_a_reason_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wildflower").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    with pytest.raises(Unfit, match="cannot be built or loaded"):
        library()

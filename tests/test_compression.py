"""Pruning and distillation: a smaller model, the same on every side and after every restart."""

from __future__ import annotations

import itertools
import json
import signal
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clients.trainers import TRAINERS
from deploy.cli import run
from deploy.fleet.submit import require_one_file
from server.handover import begun
from server.run_folder import RunFolder
from shared_models.arrays import Arrays, in_dtype, load_arrays
from shared_models.config import parse_config, to_toml
from shared_models.errors import ConfigError, InputError
from shared_models.files import sha256_of
from shared_models.gradients import by_autograd
from shared_models.objectives import Batch, Broadcast, Ground
from shared_models.objectives.distill import Teaching, distill, extras_of
from shared_models.optimizers.sgd import sgd
from shared_models.pruning import Cut, narrowed, pruned, row_of
from shared_models.stage_task import final_task, stage_task
from shared_models.task import parameter_count
from shared_models.tasks import load_task
from tests.conftest import DIGITS
from tests.fleet_in_memory import fleet, train
from tests.test_runs import KILL_AT_WRITE, simulate, wildflower
from tests.test_trainers import data_for, request_for, training_of

CUT = """
[[stages]]
kind = "prune"
keep = 0.4
"""
FINETUNE = """
[[stages]]
kind = "finetune"
rounds = 2
clients_per_round = 6
local_learning_rate = 0.1
"""
PRUNED = DIGITS + CUT + FINETUNE
TEACH = """
[[stages]]
kind = "distill"
rounds = 3
clients_per_round = 6
local_learning_rate = 0.1
student = "small:TASK"
"""
STUDENT = """
from dataclasses import replace
from torch import nn
from shared_models.tasks.images import DIGITS_CNN
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        self.head = nn.Linear(8, 10)
    def forward(self, x):
        return self.head(self.encoder(x))
TASK = replace(DIGITS_CNN, name="small", make_model=Small)
"""


class Normed(nn.Module):
    """Two convolutions with batch normalisation, pooled and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            OrderedDict(
                one=nn.Conv2d(1, 5, 3, padding=1),
                norm=nn.BatchNorm2d(5),
                relu=nn.ReLU(),
                two=nn.Conv2d(5, 7, 3, padding="same", bias=False),
                pool=nn.MaxPool2d(2),
                flat=nn.Flatten(),
            )
        )
        self.head = nn.Linear(7 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


NAMES = ["digits-cnn", "mnist-2nn", "watch-lstm", "shakespeare-lstm"]
MAKERS: dict[str, Callable[[], nn.Module]] = {n: load_task(n).make_model for n in NAMES}
MAKERS["normed"] = Normed
INPUTS = {name: torch.from_numpy(load_task(name).sample(3)) for name in NAMES}
INPUTS["normed"] = torch.rand(3, 1, 8, 8)


def deaf(whole: nn.Module, cut: Cut) -> nn.Module:
    """Returns the model, changed so that nobody listens to the units that pruning takes away."""
    links = row_of(whole)
    widths = cut.widths(whole, links)
    arrays = {name: own.clone() for name, own in whole.state_dict().items()}
    for link, after in itertools.pairwise(links):
        layer, into = whole.get_submodule(link.name), f"{after.name}.weight"
        if f"{into}_ih_l0" in arrays:
            into += "_ih_l0"
        levels = layer.num_layers if isinstance(layer, nn.LSTM) else 0
        if not levels:
            gone = smallest([whole.get_parameter(f"{link.name}.weight")], 1, widths[link.name])
        for level in range(levels):
            keys = [f"{link.name}.weight_{kind}_l{level}" for kind in ("ih", "hh")]
            gone = smallest([whole.get_parameter(key) for key in keys], 4, widths[link.name])
            arrays[keys[1]][:, gone] = 0.0
            if level < levels - 1:
                arrays[f"{link.name}.weight_ih_l{level + 1}"][:, gone] = 0.0
        units = len(whole.get_parameter(f"{link.name}.weight")) if not levels else layer.hidden_size
        heard = arrays[into].reshape(len(arrays[into]), units, -1)
        heard[:, gone] = 0.0
    whole.load_state_dict(arrays)
    return whole.eval()


def smallest(weights: Sequence[Tensor], gates: int, stay: int) -> Tensor:
    rows = torch.cat([own.flatten(1) for own in weights], dim=1).abs().double().sum(1)
    return rows.reshape(gates, -1).sum(0).argsort(descending=True, stable=True)[stay:]


@pytest.mark.parametrize("name", MAKERS)
def test_the_smaller_model_is_the_whole_one_without_its_smallest_units(name: str) -> None:
    torch.manual_seed(0)
    make, cut = MAKERS[name], Cut(0.6)
    whole, small = make(), narrowed(make, cut)()
    small.load_state_dict(pruned(make, cut, whole.state_dict()))
    assert list(small.state_dict()) == list(whole.state_dict())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())
    x = INPUTS[name] if name == "shakespeare-lstm" else torch.rand(INPUTS[name].shape)
    torch.testing.assert_close(small.eval()(x), deaf(whole, cut)(x))


def test_prefixes_choose_and_the_last_layer_stays() -> None:
    task = load_task("digits-cnn")
    small = narrowed(task.make_model, Cut(0.5, ("encoder.dense",)))().state_dict()
    assert small["encoder.conv.weight"].shape == (16, 1, 3, 3)
    assert small["encoder.dense.weight"].shape == (16, 256)
    assert small["head.weight"].shape == (10, 16)
    with pytest.raises(InputError, match="prefixes: no layer that can be cut"):
        narrowed(task.make_model, Cut(0.5, ("head.",)))()


class Adds(Normed):
    """Adds what one layer gives to what another does."""

    def forward(self, x: Tensor) -> Tensor:
        one, *_, two, pool, flat = self.encoder
        first = one(x)
        logits: Tensor = self.head(flat(pool(two(first) + first)))
        return logits


class Grouped(nn.Module):
    """A depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(4, 8, 3, groups=4)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Adds, "operation 'add'"),
        (Grouped, "layer 'encoder' cannot be cut: its channels come in groups"),
        (lambda: nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2)), r"layer '0' \(GRU\)"),
        (lambda: nn.Sequential(nn.Linear(4, 2)), "no two layers"),
    ],
)
def test_what_cannot_be_cut_is_named(make: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(InputError, match=told):
        narrowed(make, Cut(0.5))()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (DIGITS + CUT, "stages.prune: a stage that learns has to follow"),
        (DIGITS + FINETUNE + "temperature = 2.0", "temperature: is for stages of kind 'distill'"),
        (DIGITS + TEACH.replace("student", "#"), "student: is missing"),
        (DIGITS + TEACH.replace("small:TASK", "mnist-cn"), "does not exist; did you mean"),
        (DIGITS + TEACH + "quantize_aware = true", "quantize_aware: contradicts kind 'distill'"),
        (DIGITS + TEACH + 'objective = "fedprox"', "objective: contradicts kind 'distill'"),
    ],
)
def test_what_makes_no_sense_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(text, "x")


def test_a_stages_task_is_that_of_the_stages_before() -> None:
    config = parse_config(PRUNED, "x")
    counts = [parameter_count(stage_task(config, s.name)) for s in config.stages]
    assert counts[0] > counts[1] == counts[2] == parameter_count(final_task(config))
    assert counts[0] == parameter_count(load_task("digits-cnn"))
    before = load_task("digits-cnn").build(3)
    first = begun(config, config.learning_stages[1], lambda _: before)
    assert first.params["encoder.conv.weight"].shape == (7, 1, 3, 3)  # 0.4 of 16, rounded up


def test_a_student_of_other_labels_is_refused() -> None:
    config = parse_config(DIGITS + TEACH.replace("small:TASK", "mnist-cnn"), "x")
    with pytest.raises(InputError, match="student: 'mnist-cnn' has another input"):
        stage_task(config, "distill")


def test_a_students_file_travels_only_with_the_task() -> None:
    config = parse_config(DIGITS + TEACH, "x")
    with pytest.raises(InputError, match=r"student: small\.py does not travel to a fleet"):
        require_one_file(config)
    require_one_file(config.model_copy(update={"task": "small:LARGE"}))
    require_one_file(parse_config(DIGITS, "x"))


def taught() -> tuple[Teaching, Arrays]:
    teacher = load_task("watch-lstm")
    return Teaching(teacher, 3.0, 0.7), teacher.build(1)


def test_the_loss_is_that_of_the_paper() -> None:
    teaching, arrays = taught()
    student = load_task("watch-lstm-small")
    training = training_of(student)
    objective = distill(Ground(student, sgd(1.0), by_autograd, training.roles), teaching)
    x, y = torch.rand(5, 100, 6), torch.arange(5)
    params = student.build(0)
    local = objective.begin(Broadcast(params, extras_of(arrays)), {}, Batch(x, y))
    _, metrics = objective.step(local, Batch(x, y), {})
    said = teaching.teacher.apply(teaching.teacher.model(), arrays, x)
    ours = student.apply(student.model(), params, x)
    p, q = (said / 3).softmax(1), (ours / 3).softmax(1)
    soft = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(metrics["loss"], 0.7 * 9 * soft + 0.3 * student.loss(ours, y))


def test_the_vectorised_trainer_teaches_like_the_loop() -> None:
    teaching, arrays = taught()
    student = load_task("watch-lstm-small")
    training = training_of(student, make_objective=lambda ground: distill(ground, teaching))
    extras = {k: in_dtype(own, torch.float64) for k, own in extras_of(arrays).items()}
    request = replace(request_for(student), extras=extras)
    ours, theirs = (
        TRAINERS[n](training)(request, data_for(student)) for n in ("vectorised", "loop")
    )
    assert [row.reason for row in theirs.rows] == [""] * 5
    for key, part in theirs.sums.items():
        torch.testing.assert_close(ours.sums[key].arrays, part.arrays, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [pytest.param("prune", marks=pytest.mark.slow), "distill"])
def test_killed_or_with_two_workers_the_bytes_are_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(STUDENT)
    text = PRUNED if kind == "prune" else DIGITS + TEACH + FINETUNE
    config = tmp_path / "run.toml"
    config.write_text(text.replace("rounds = 4", "rounds = 2"))
    alone = simulate(config, tmp_path / "alone")
    for place in (6, 8):  # in the stage before, and in the one with another model
        killed = tmp_path / f"killed-{place}"
        first = KILL_AT_WRITE.format(place=place, before=False)
        done = wildflower("simulate", config, "--out", killed, first=first)
        assert done.returncode == -signal.SIGKILL, done.stderr
        done = wildflower("simulate", config, "--out", killed, "--resume")
        assert done.returncode == 0, done.stderr
        assert sha256_of(killed / "model.safetensors") == alone
    done = wildflower("simulate", config, "--out", tmp_path / "ray", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "ray" / "model.safetensors") == alone


@pytest.mark.parametrize("kind", ["prune", "distill"])
def test_files_are_of_the_smaller_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(STUDENT)
    export = '[[stages]]\nkind = "export"\nformats = ["onnx"]\nlatency_runs = 5\n'
    export += "max_score_drop = 0.03\n"  # 359 examples: four of them are more than 0.01
    text = PRUNED if kind == "prune" else DIGITS + TEACH.replace("rounds = 3", "rounds = 25")
    path = tmp_path / "run.toml"
    path.write_text(to_toml(parse_config(text.replace("rounds = 4", "rounds = 12") + export, "x")))
    assert run(["simulate", str(path), "--out", str(tmp_path / "run")]) == 0
    folder = RunFolder(tmp_path / "run")
    told = json.loads((folder.path / "summary.json").read_text())
    arrays = load_arrays(folder.model_file)
    assert told["params"] == sum(own.numel() for own in arrays.values())
    assert told["params"] < 0.5 * parameter_count(load_task("digits-cnn"))
    assert all(artefact["passed"] for artefact in told["artefacts"])
    assert told["stages"][-1]["eval"]["accuracy"] > 0.5


@pytest.mark.parametrize("kind", ["prune", "distill"])
def test_what_a_fleet_pruned_or_taught_is_replayed_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(STUDENT)
    text = PRUNED if kind == "prune" else DIGITS + TEACH
    config = parse_config(text.replace("rounds = 4", "rounds = 2"), "test")
    trained = train(config, fleet(config, 71, 72), tmp_path / "fleet")[0]
    manifest, out = str(trained.manifest_file), tmp_path / "replay"
    assert run(["simulate", "--plan", manifest, "--out", str(out)]) == 0
    assert sha256_of(out / "model.safetensors") == sha256_of(trained.model_file)

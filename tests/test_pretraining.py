"""The stage without labels: its objectives, whose examples it sees, what it hands over."""

from __future__ import annotations

import functools
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from clients.host import open_host
from clients.trainers import TRAINERS
from deploy.cli import run
from deploy.simulate import check
from server.evaluation import evaluation_split
from server.population import Population, few_labelled, merge_hellos, of_stage
from server.run_folder import RunFolder
from shared_models.arrays import in_dtype, load_arrays, roles_of
from shared_models.augmentations import augmentation_of
from shared_models.config import Config, parse_config
from shared_models.datasets.load import load_dataset, load_task_data
from shared_models.errors import ConfigError, InputError
from shared_models.files import sha256_of
from shared_models.inputs import InputSpec
from shared_models.labelled import UNLABELLED, labelled, labelled_count
from shared_models.models.scanned import scanned
from shared_models.objectives import Batch
from shared_models.objectives.choice import pretext_of
from shared_models.objectives.fedema import fedema
from shared_models.objectives.masked import masked
from shared_models.objectives.simclr import contrast
from shared_models.partial import Partial
from shared_models.stage_task import final_task, stage_task
from shared_models.task import Task
from shared_models.tasks import load_task
from tests.pretraining import FINETUNE, HEAD, PRETRAIN, TRAIN
from tests.test_runs import KILL_AT_WRITE, simulate, wildflower
from tests.test_trainers import data_for, request_for, training_of

OBJECTIVES = ("simclr", "simsiam", "denoising_autoencoder", "masked_reconstruction", "forecasting")


def config(*stages: str) -> Config:
    return parse_config(HEAD + "".join(stages), "x")


def pretext(name: str, objective: str) -> Task:
    stage = config(PRETRAIN + f'objective = "{objective}"', FINETUNE).learning_stages[0]
    return pretext_of(stage, load_task(name))


TOGETHER = [
    (name, objective)
    for name in ("digits-cnn", "watch-cnn", "watch-lstm-small")
    for objective in OBJECTIVES
    if (name, objective) != ("digits-cnn", "forecasting")
]


@pytest.mark.parametrize(("name", "objective"), TOGETHER)
def test_the_encoder_is_the_tasks_own_and_the_head_is_not_there(name: str, objective: str) -> None:
    task = pretext(name, objective)
    own, found = load_task(name).build(0), task.build(0)
    assert task.measures() == ("loss",)
    encoder = {key: array.shape for key, array in own.items() if key.startswith("encoder.")}
    assert {k: found[k].shape for k in found if k.startswith("encoder.")} == encoder
    parts = {key.partition(".")[0] for key in found} - {"encoder"}
    assert parts in ({"decoder"}, {"projector"}, {"projector", "predictor"})


@pytest.mark.parametrize(
    ("name", "objective"),
    [pair for pair in TOGETHER if pair[0] == "digits-cnn"]
    + [("watch-lstm-small", "masked_reconstruction"), ("watch-cnn", "simclr")],
)
def test_the_vectorised_trainer_pretrains_like_the_loop(name: str, objective: str) -> None:
    task = pretext(name, objective)
    training = training_of(task, make_objective=task.objective)
    # Whole batches: a normalisation over the two views of one example makes rounding larger.
    data_of = data_for(task, (6, 3, 9, 3, 3))
    ours, theirs = (
        TRAINERS[n](training)(request_for(task), data_of) for n in ("vectorised", "loop")
    )
    assert [row.reason for row in theirs.rows] == [""] * 5
    for key, part in theirs.sums.items():
        torch.testing.assert_close(ours.sums[key].arrays, part.arrays, rtol=1e-9, atol=1e-10)


def ema(trainer: str, kept: float) -> Partial:
    """What five clients send who are back, each having kept a model that far from the server's."""
    task = pretext("digits-cnn", "denoising_autoencoder")
    training = training_of(task, make_objective=functools.partial(fedema, tau=0.7))
    server = in_dtype(task.build(0), torch.float64)
    own = {name: array + kept for name, array in server.items()}
    state = {"own": own, "scale": {"value": torch.zeros((), dtype=torch.float64)}}
    request = replace(request_for(task, server), states=dict.fromkeys(range(5), state))
    return TRAINERS[trainer](training)(request, data_for(task))


def test_who_is_back_begins_between_its_own_model_and_the_servers() -> None:
    far, near = ema("loop", 0.01), ema("loop", 0.0)
    assert [row.status for row in far.rows] == ["ok"] * 5
    encoders = sum(
        array.numel()
        for name, array in load_task("digits-cnn").build(0).items()
        if name.startswith("encoder.")
    )
    scale = far.states[0]["scale"]["value"]
    torch.testing.assert_close(scale, torch.tensor(0.7 / (0.01 * encoders**0.5)).double())
    assert float(near.states[0]["scale"]["value"]) == 0.0
    gone = far.states[0]["own"]["encoder.dense.bias"] - near.states[0]["own"]["encoder.dense.bias"]
    assert 0.005 < float(gone.mean()) < 0.009  # 0.7 of the way, and two epochs of descent
    ours = ema("vectorised", 0.01)
    for key, part in far.sums.items():
        torch.testing.assert_close(ours.sums[key].arrays, part.arrays, rtol=1e-9, atol=1e-12)


def test_the_contrast_is_that_of_the_paper() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    alike = cosine_similarity(z[:, None], z[None], dim=2) / 0.5
    expected = [
        -torch.log(alike[i, (i + 3) % 6].exp() / sum(alike[i, k].exp() for k in range(6) if k != i))
        for i in range(6)
    ]
    torch.testing.assert_close(contrast(0.5)(z, z), torch.stack(expected).mean())


def test_only_what_is_hidden_is_told() -> None:
    view = masked(load_task("watch-cnn"), 0.5).view
    assert view is not None
    batch = Batch(torch.ones(4, 100, 6), torch.zeros(4))
    shown = view.show(batch, view.draw(np.random.default_rng(0), batch))
    hidden = shown.y[:, 1]
    assert 0.2 < float(hidden.mean()) < 0.8
    torch.testing.assert_close(shown.x, 1 - hidden)
    loss = masked(load_task("watch-cnn"), 0.5).loss
    assert float(loss(hidden, shown.y)) == 0.0  # right where it counts, wrong elsewhere
    assert float(loss(1 - hidden, shown.y)) == 1.0


@pytest.mark.parametrize("name", ["digits-cnn", "watch-cnn"])
def test_views_are_examples_and_differ(name: str) -> None:
    spec = load_task(name).input
    augmentation = augmentation_of(spec)
    x = torch.rand(5, *spec.shape)
    noise = {k: own.float() for k, own in augmentation.draw(np.random.default_rng(0), 5).items()}
    one = augmentation.apply(x, noise)
    assert one.shape == x.shape
    assert bool(torch.isfinite(one).all())
    assert not torch.equal(one, x)
    torch.testing.assert_close(one, augmentation.apply(x, noise), rtol=0, atol=0)


def test_a_sensor_that_is_turned_feels_the_same_force() -> None:
    spec = InputSpec(shape=(50, 6), mean=(0.1, 0.2, 0.3, 0.0, 0.0, 0.0), std=(2.0,) * 6)
    augmentation = augmentation_of(spec)
    x = torch.rand(3, 50, 6).double()
    noise = augmentation.draw(np.random.default_rng(1), 3)
    still = {"jitter": 0.0, "scale": 1.0, "kept": 1.0}
    noise |= {key: torch.full_like(noise[key], value) for key, value in still.items()}
    noise["times"] = torch.arange(50.0).double().expand(3, 50)
    raw, turned = (
        own * 2.0 + torch.tensor(spec.mean).double() for own in (x, augmentation.apply(x, noise))
    )
    torch.testing.assert_close(raw[..., :3].norm(dim=2), turned[..., :3].norm(dim=2))
    assert not torch.allclose(raw, turned)


def test_who_has_labels_is_drawn_once_for_all_shares() -> None:
    few, more = (set(labelled(f, 0, 7, 500).tolist()) for f in (0.01, 0.1))
    assert len(few) in (5, 6)
    assert few < more
    assert few != set(labelled(0.01, 1, 7, 500).tolist())
    assert set(labelled(1.0, 0, 7, 500).tolist()) == set(range(500))


def test_stages_with_labels_see_these_alone() -> None:
    own = config(PRETRAIN, FINETUNE)
    host = open_host(own)
    few, everything = (host.data_for(name)(3) for name in ("finetune", "pretrain"))
    owned = host.examples([3])[0]
    assert len(everything.y) == owned
    assert len(few.y) == labelled_count(0.1, 0, 3, owned) < owned / 5


def test_who_finds_the_input_again_needs_no_labels() -> None:
    own = parse_config(HEAD.replace("digits-cnn", "mnist-autoencoder") + TRAIN, "x")
    host, (stage,) = open_host(own), own.learning_stages
    population = merge_hellos({1: host.hello()})
    assert of_stage(population, own, stage) == population
    assert host.taking_part(stage) == host.client_ids
    assert len(host.data_for(stage.name)(3).y) == host.examples([3])[0]


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The digits with all labels, and with -1 for those that a config with a tenth would hide."""
    folder, known = tmp_path_factory.mktemp("marked"), load_dataset("digits")
    whole = open_host(config(PRETRAIN, FINETUNE))
    own = [whole.partition.indices(k) for k in whole.client_ids]
    drawn = [at[labelled(0.1, 0, k, len(at))] for k, at in zip(whole.client_ids, own, strict=True)]
    y = np.full(len(known.train), UNLABELLED)
    y[np.concatenate(drawn)] = known.train.y[np.concatenate(drawn)]
    assert known.test is not None
    x, x_test, y_test = np.asarray(known.train.x), np.asarray(known.test.x), known.test.y
    for name, told in (("all", known.train.y), ("few", y)):
        np.savez(folder / f"{name}.npz", x=x, y=told, x_test=x_test, y_test=y_test)
    return folder / "all.npz", folder / "few.npz"


def of_file(path: Path, fraction: float) -> str:
    """The config with data of a file, where this share of the labels is shown."""
    named = HEAD.replace("[data]", f"[data]\nname = {str(path)!r}")
    return named.replace("labelled_fraction = 0.1", f"labelled_fraction = {fraction}")


def test_labels_that_are_not_there_are_as_good_as_hidden(
    marked: tuple[Path, Path], tmp_path: Path
) -> None:
    made = []
    for file, fraction in zip(marked, (0.1, 1.0), strict=True):
        path = tmp_path / f"{file.stem}.toml"
        path.write_text(of_file(file, fraction) + PRETRAIN + FINETUNE)
        made.append(simulate(path, tmp_path / file.stem))
    assert made[0] == made[1]


def test_of_labels_that_are_there_a_share_can_be_hidden(marked: tuple[Path, Path]) -> None:
    own = parse_config(of_file(marked[1], 0.5) + PRETRAIN + FINETUNE, "x")
    host, stage = open_host(own), own.stage("finetune")
    some = of_stage(merge_hellos({1: host.hello()}), own, stage)
    labels = sum(host.labels(host.client_ids))
    assert labels < 0.2 * sum(host.examples(host.client_ids))
    assert 0.4 * labels < sum(some.examples) < 0.6 * labels
    assert some.client_ids == host.taking_part(stage)
    for client_id, count in some.examples_of.items():
        y = host.data_for("finetune")(client_id).y
        assert len(y) == count
        assert (y >= 0).all()
        assert (host.data_for("pretrain")(client_id).y == UNLABELLED).any()


@pytest.mark.parametrize(
    ("fraction", "told"),
    [
        (1.0, r"stages.finetune: no client has a label; the data has none \(-1 in y\)"),
        (0.5, "stages.finetune: no client has a label; data.labelled_fraction = 0.5 leaves none"),
    ],
)
def test_without_any_label_nobody_can_train(fraction: float, told: str, tmp_path: Path) -> None:
    x, y = np.zeros((30, 64), np.float32), np.full(30, -1)
    np.savez(tmp_path / "none.npz", x=x, y=y, x_test=x[:3], y_test=np.arange(3))
    own = parse_config(of_file(tmp_path / "none.npz", fraction) + PRETRAIN + FINETUNE, "x")
    with pytest.raises(InputError, match=told):
        check(own, tmp_path / "run")
    with pytest.raises(InputError, match=told):
        of_stage(merge_hellos({1: open_host(own).hello()}), own, own.stage("finetune"))


def test_a_task_without_labels_wants_none_to_be_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=np.zeros((30, 28, 28), np.uint8), y=np.full(30, -1))
    with pytest.raises(
        InputError, match="has -1 in y, for no label; task 'mnist-gan' has no labels"
    ):
        load_task_data(load_task("mnist-gan"), str(tmp_path / "few.npz"))


def test_how_many_have_no_label_is_told(
    marked: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for file, told in zip(marked, (False, True), strict=True):
        assert run(["data", "info", str(file)]) == 0
        assert ("training examples have no label" in capsys.readouterr().out) is told


def test_nobody_measures_with_examples_that_have_no_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=np.zeros((3, 64), np.float32), y=np.array([0, -1, 2]))
    head = HEAD.replace("[data]", f"evaluate.data = {str(tmp_path / 'few.npz')!r}\n[data]")
    own = parse_config(head + PRETRAIN + FINETUNE, "x")
    with pytest.raises(InputError, match=r"few.npz has examples without labels \(-1\) and no test"):
        evaluation_split(own, load_task("digits-cnn"))


def test_clients_without_labels_take_no_part_where_they_are_needed() -> None:
    own = parse_config((HEAD + PRETRAIN + FINETUNE).replace("= 0.1\n", "= 0.003\n", 1), "x")
    host = open_host(own)
    pretrain, finetune = own.learning_stages
    population = Population(host.client_ids, host.examples(host.client_ids), None, ("x",))
    assert of_stage(population, own, pretrain) == population
    few = of_stage(population, own, finetune)
    assert 0 < len(few) < len(population)
    assert few.client_ids == host.taking_part(finetune)
    crowd = finetune.model_copy(update={"clients_per_round": 1000})
    note = few_labelled(population, few, crowd)
    assert f"asks for {len(population)} clients a round; {len(few)} of" in note
    assert not few_labelled(population, few, crowd.model_copy(update={"clients_per_round": 1}))
    assert all(len(host.data_for("finetune")(k).y) == n for k, n in few.examples_of.items())
    with pytest.raises(InputError, match="no client has a label"):
        of_stage(replace(population, client_ids=(1,), examples=(1,)), own, finetune)


def test_the_head_comes_from_the_stage_that_had_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(HEAD + TRAIN + PRETRAIN + FINETUNE + 'freezes = ["head.", "encoder.conv."]\n')
    simulate(path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    train, pre, tuned = (
        load_arrays(folder.stage_file(name)) for name in ("train", "pretrain", "finetune")
    )
    assert torch.equal(train["head.weight"], tuned["head.weight"])
    assert torch.equal(pre["encoder.conv.weight"], tuned["encoder.conv.weight"])
    assert not torch.equal(train["encoder.conv.weight"], pre["encoder.conv.weight"])
    assert not torch.equal(pre["encoder.dense.weight"], tuned["encoder.dense.weight"])
    told = [stage["eval"].keys() for stage in folder.summary()["stages"]]
    assert told == [{"loss", "accuracy"}, {"loss"}, {"loss", "accuracy"}]


# Files: config, manifest, two checkpoints and weights, three and weights, three and weights.
@pytest.mark.parametrize("place", [5, 7, 9, 11])
def test_killed_or_with_two_workers_the_bytes_are_the_same(place: int, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(HEAD + TRAIN + PRETRAIN + FINETUNE)
    alone = simulate(path, tmp_path / "alone")
    first = KILL_AT_WRITE.format(place=place, before=False)
    done = wildflower("simulate", path, "--out", tmp_path / "killed", first=first)
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = wildflower("simulate", path, "--out", tmp_path / "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "killed" / "model.safetensors") == alone
    if place == 5:
        done = wildflower("simulate", path, "--out", tmp_path / "ray", "--workers", "2")
        assert done.returncode == 0, done.stderr
        assert sha256_of(tmp_path / "ray" / "model.safetensors") == alone


def test_a_mapped_model_keeps_its_class() -> None:
    task = pretext("watch-lstm-small", "simclr")
    model = scanned(task.model().eval())
    x = torch.rand(3, 100, 6)
    torch.testing.assert_close(model(x), task.model().eval()(x))


def test_the_final_model_is_the_tasks_own() -> None:
    own = config(TRAIN, PRETRAIN, FINETUNE)
    assert final_task(own).build(0).keys() == load_task("digits-cnn").build(0).keys()
    arrays = stage_task(own, "pretrain")
    assert "trainable" in roles_of(arrays.model(), (), ("projector.",)).values()


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (TRAIN + PRETRAIN, "a stage of kind 'finetune' has to follow"),
        (PRETRAIN + '[[stages]]\nkind = "prune"\n' + FINETUNE, "wants a whole model"),
        (PRETRAIN + 'objective = "fedprox"' + FINETUNE, "objective: 'fedprox' needs labels"),
        (PRETRAIN + 'personal = ["head."]' + FINETUNE, "personal: contradicts kind 'pretrain'"),
        (TRAIN + 'objective = "simclr"', "is for stages of kind 'pretrain'"),
        (TRAIN + "mixing_scale = 0.7", "mixing_scale: is for stages of kind 'pretrain'"),
        (PRETRAIN + "masked_fraction = 0.2" + FINETUNE, "masked_fraction: contradicts objective"),
    ],
)
def test_what_makes_no_sense_is_told(stages: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(stages)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_tokens_are_refused(objective: str) -> None:
    with pytest.raises(InputError, match=r"windows of sensors"):
        pretext("shakespeare-lstm", objective)

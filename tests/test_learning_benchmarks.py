"""The benchmarks of accuracy: what they ask for, what they tell, and that they go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import algorithms, attack, labels, learning
from benchmarks.held_out import hold_out
from benchmarks.learning import Curve, Kept, learn, learn_all, open_kept
from benchmarks.plot import save
from shared_models.config import Config
from shared_models.datasets.load import load_dataset
from shared_models.errors import InputError

ATTACK = attack.Setting("digits-cnn", clients=10, cohort=10, examples=20, rounds=2)
SKEW = algorithms.Setting("digits-cnn", "digits", clients=8, cohort=4, max_examples=40, rounds=2)


def flat(accuracy: float, rounds: int = 20) -> Curve:
    return Curve((accuracy,) * rounds)


def never(_: str) -> None:
    raise AssertionError("nothing was to be run")


def tried(name: str) -> list[algorithms.Numbers]:
    rate = algorithms.LOCAL_RATES[2]
    return [*algorithms.rates(name), *algorithms.others(name, rate)]


def tuned(place: int) -> dict[str, Curve]:
    """Curves of tuning that say: local rate 0.1, and this one of the other numbers."""
    curves = {
        algorithms.run_name(name, numbers, None): flat(0.5)
        for name in algorithms.ALGORITHMS
        for numbers in tried(name)
    }
    for name in algorithms.ALGORITHMS:
        first, best = tried(name)[2], tried(name)[4 + place]
        curves[algorithms.run_name(name, first, None)] = flat(0.6)
        curves[algorithms.run_name(name, best, None)] = flat(0.9)
    return curves


def test_every_fifth_client_attacks_and_a_clean_run_has_no_faults() -> None:
    clean, attacked, *_ = (attack.config_of(case, attack.Setting()) for case in attack.CASES)
    assert not clean.faults.there_are_some
    assert attacked.faults.sign_flip == tuple(range(0, 100, 5))
    assert attacked.faults.sign_flip_scale == 4.0
    assert clean.learning_stages == attacked.learning_stages


def test_every_aggregator_is_attacked() -> None:
    stages = [attack.config_of(case, ATTACK).learning_stages[0] for case in attack.CASES]
    assert len({stage.aggregator for stage in stages}) == 7
    assert len({case.name for case in attack.CASES}) == len(attack.CASES)


def test_a_tiny_attack_runs() -> None:
    case = next(case for case in attack.CASES if case.name == "median")
    curve = learn(attack.config_of(case, ATTACK))
    assert len(curve.accuracy) == 2
    assert curve.most_injected == 2
    assert curve.broke is None


def test_points_lost_are_against_nobody_attacking() -> None:
    curves = {case.name: flat(0.88) for case in attack.CASES}
    curves |= {attack.CLEAN: flat(0.9), "mean": Curve((0.1,), broke="it diverged")}
    rows = {row["case"]: row for row in attack.summary(curves)}
    assert rows["median"]["points_lost"] == 2.0
    assert rows["mean"]["accuracy"] == 0.0
    lines = attack.table(list(rows.values())).splitlines()
    assert "broke off" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_the_plot_names_its_curves_and_has_equal_bytes_twice(tmp_path: Path) -> None:
    curves = {case.name: flat(0.5) for case in attack.CASES}
    files = [tmp_path / name for name in ("one.svg", "two.svg")]
    for file in files:
        save(attack.draw(curves, ATTACK), file, "accuracy")
    one, two = (file.read_text() for file in files)
    assert all(case.name in one for case in attack.CASES if case.colour)
    assert one == two


def test_a_run_that_breaks_off_is_told_and_counts_as_nothing() -> None:
    config = attack.config_of(attack.CASES[0], replace(ATTACK, local_learning_rate=1e6))
    curve = learn(config)
    assert "none of 10 clients sent a usable update" in (curve.broke or "")
    assert curve.at_end(1) == 0.0


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    wanted = {"run": attack.config_of(attack.CASES[0], ATTACK)}
    told: list[str] = []
    done = learn_all(wanted, open_kept(tmp_path / "own.json", {"rounds": 2}), 1, told.append)
    assert len(told) == 1
    again = open_kept(tmp_path / "own.json", {"rounds": 2})
    assert again.curves == done.curves
    assert learn_all(wanted, again, 1, never).curves == done.curves
    with pytest.raises(InputError, match="another protocol"):
        open_kept(tmp_path / "own.json", {"rounds": 3})


@pytest.mark.slow
def test_runs_at_the_same_time_give_the_same_curves(tmp_path: Path) -> None:
    cases = attack.CASES[:2]
    wanted: dict[str, Config] = {case.name: attack.config_of(case, ATTACK) for case in cases}
    kept = learn_all(wanted, Kept(tmp_path / "own.json", {}, {}), 2, lambda _: None)
    assert kept.curves == {name: learn(config) for name, config in wanted.items()}


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_all_algorithms_are_tried_alike_with_settings_that_the_config_takes(name: str) -> None:
    configs = [algorithms.config_of(name, own, SKEW, "digits", seed=1) for own in tried(name)]
    # Four rates and four other numbers, which have one setting in common.
    assert len({config.learning_stages[0] for config in configs}) == 7
    assert {config.seed for config in configs} == {1}


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_every_algorithm_runs(name: str) -> None:
    numbers = tried(name)[1]
    curve = learn(algorithms.config_of(name, numbers, SKEW, "digits", seed=1))
    assert len(curve.accuracy) == 2
    assert curve.broke is None


def test_tuning_sees_training_examples_alone(tmp_path: Path) -> None:
    hold_out("digits", tmp_path / "own.npz", count=100)
    whole, own = load_dataset("digits").train, load_dataset(str(tmp_path / "own.npz"))
    assert own.test is not None
    assert (len(own.train), len(own.test)) == (len(whole) - 100, 100)
    together = np.concatenate([np.asarray(own.train.x), np.asarray(own.test.x)])
    assert sorted(row.tobytes() for row in together) == sorted(
        row.tobytes() for row in np.asarray(whole.x)
    )


def test_people_are_held_out_whole(tmp_path: Path) -> None:
    people = np.repeat(np.arange(5), 4)
    np.savez(tmp_path / "all.npz", x=people[:, None], y=people, client_id=people)
    hold_out(str(tmp_path / "all.npz"), tmp_path / "own.npz", count=7)
    own = load_dataset(str(tmp_path / "own.npz"))
    assert own.test is not None
    assert own.train.client_id is not None
    assert sorted({*own.train.client_id} | {*own.test.y}) == [0, 1, 2, 3, 4]
    assert (len({*own.train.client_id}), len(own.test)) == (3, 8)


def test_the_best_setting_is_chosen_and_edges_are_told() -> None:
    for place in range(4):
        expected = {name: tried(name)[4 + place] for name in algorithms.ALGORITHMS}
        curves = tuned(place)
        assert {name: algorithms.chosen(name, curves) for name in expected} == expected
    assert algorithms.at_edge("FedProx", tried("FedProx")[2]) == []
    assert algorithms.at_edge("FedProx", tried("FedProx")[0]) == ["local_learning_rate"]


def test_gains_are_taken_seed_by_seed() -> None:
    curves = tuned(2)
    favourites = {name: algorithms.chosen(name, curves) for name in algorithms.ALGORITHMS}
    for name, numbers in favourites.items():
        for seed, accuracy in ((1, 0.6), (2, 0.8)):
            better = 0.05 * seed if name == "FedAdam" else 0.0
            curves[algorithms.run_name(name, numbers, seed)] = flat(accuracy + better)
    rows = {row["algorithm"]: row for row in algorithms.summary(curves, (1, 2))}
    assert rows["FedAdam"]["gains"] == [5.0, 10.0]
    assert rows["FedProx"]["gains"] == [0.0, 0.0]
    assert rows["FedAvg"]["mean"] == 0.7
    assert rows["FedAvg"]["validation"] == 0.9
    lines = algorithms.table(list(rows.values())).splitlines()
    assert "+5.0 +10.0" in next(line for line in lines if "FedAdam" in line)
    assert len({len(line) for line in lines}) == 1
    json.dumps(list(rows.values()))


def test_labels_are_told_by_share_and_go_on(tmp_path: Path) -> None:
    cells = list(labels.cells_of(["tiny"], [0.2], range(1), ()))
    assert [cell.way for cell in cells] == ["scratch", "denoising_autoencoder"]
    kinds = [[stage.kind for stage in labels.config_of(cell).stages] for cell in cells]
    assert kinds == [["train"], ["pretrain", "train"]]
    wanted = {cell.name: labels.config_of(cell) for cell in cells}
    kept = learn_all(wanted, open_kept(tmp_path / "labels.json", {}), 1, lambda _: None)
    kept = learn_all(wanted, kept, 1, never)
    rows = labels.rows_of(kept.curves)
    assert [row.way for row in rows] == ["scratch", "denoising_autoencoder"]
    assert labels.table(rows).count("\n") == 2
    save(labels.draw(rows), tmp_path / "labels.svg", "accuracy")


def test_shared_pretraining_changes_no_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = list(labels.cells_of(["tiny"], [0.2, 0.5], range(1), ["denoising_autoencoder"]))
    run: list[Config] = []

    def noted(config: Config, keep: Path | None = None) -> Curve:
        run.append(config)
        return learn(config, keep)

    monkeypatch.setattr(learning, "learn", noted)
    curves = labels.learnt(tmp_path / "labels.json", cells, 1, validate=False)
    pretrained = [config.stages[0].kind == "pretrain" for config in run]
    assert pretrained.count(True) == 1
    assert len(run) == len(cells)
    assert curves == {cell.name: learn(labels.config_of(cell)) for cell in cells}


def test_gains_are_against_scratch() -> None:
    curves = {f"x 0.01 scratch {s}": flat(0.5 + 0.1 * s) for s in range(2)}
    curves["x 0.01 scratch 2"] = flat(0.9)  # nobody was pretrained with this seed
    rows = labels.rows_of({**curves, "x 0.01 simclr 0": flat(0.65), "x 0.01 simclr 1": flat(0.65)})
    (line,) = labels.table(rows).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells == ["x", "1%", "simclr", "55.0 ± 7.1", "65.0 ± 0.0", "+10.0", "2"]

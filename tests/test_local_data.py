"""A device's own data: each form is read, each fault is one line that names the file."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from clients.hosting import Hosting
from clients.local_data import opened_by
from shared_models.config import parse_config
from shared_models.errors import InputError
from tests.conftest import DIGITS, ROOT

DIGITS_CONFIG = parse_config(DIGITS, "test")
WATCH_CONFIG = parse_config(
    DIGITS.replace("digits-cnn", "watch-lstm").replace(
        'partition = "iid"\nclients = 12', 'partition = "natural"'
    ),
    "test",
)
X = np.arange(6 * 64, dtype=np.float32).reshape(6, 8, 8) % 17
Y = np.array([3, 1, 4, 1, 5, 9])


def hello_of(data: object, *ids: int, config: Any = DIGITS_CONFIG) -> tuple[Any, ...]:
    hello = opened_by(Hosting(str(data), ids or (7,)))(config).hello()
    return hello.client_ids, hello.examples, hello.shared


def owned(data: object, client_id: int = 7, config: Any = DIGITS_CONFIG) -> Any:
    return opened_by(Hosting(str(data), (client_id,)))(config).data_of(client_id)


def write_csv(path: Path, x: Any, y: Any, label: str = "label") -> None:
    flat = np.reshape(x, (len(x), -1))
    header = ",".join([label, *(f"p{k}" for k in range(flat.shape[1]))])
    rows = [",".join([str(own), *map(str, row)]) for own, row in zip(y, flat, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")


def write_idx(path: Path, values: Any) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_an_npz_is_one_client_s(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=X, y=Y)
    assert hello_of(tmp_path / "mine.npz") == ((7,), (6,), False)
    data = owned(tmp_path / "mine.npz")
    assert data.y.tolist() == Y.tolist()
    np.testing.assert_array_equal(np.reshape(data.x, X.shape), X / 16)


def test_an_npz_that_says_who_owns_what_is_dealt_by_that(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez(path, x=X, y=Y, client_id=[2, 2, 2, 5, 5, 9])
    assert hello_of(path, 2, 5) == ((2, 5), (3, 2), False)
    assert owned(path, 9).y.tolist() == [9]
    np.testing.assert_array_equal(np.reshape(owned(path, 5).x, (2, 8, 8)), X[3:5] / 16)
    with pytest.raises(InputError, match=r"has no examples of client 7$"):
        hello_of(path, 7)


def test_one_file_for_many_clients_must_say_who_owns_what(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", x=X, y=Y)
    with pytest.raises(InputError, match=r"one file for 2 clients; put \{client\}"):
        hello_of(tmp_path / "all.npz", 1, 2)


def test_a_gateway_has_a_file_for_each_of_its_clients(tmp_path: Path) -> None:
    for client_id in (1, 2, 3):
        np.savez(tmp_path / f"{client_id}.npz", x=X[:client_id], y=Y[:client_id])
    assert hello_of(tmp_path / "{client}.npz", 1, 3) == ((1, 3), (1, 3), False)
    host = opened_by(Hosting(str(tmp_path / "{client}.npz"), (1, 3)))(DIGITS_CONFIG)
    assert host.data_of(3).y.tolist() == [3, 1, 4]
    with pytest.raises(InputError, match=r"/4\.npz: there is no such file"):
        hello_of(tmp_path / "{client}.npz", 1, 4)


def test_data_that_differ_have_digests_that_differ(tmp_path: Path) -> None:
    for name, y in (("a", Y), ("b", Y), ("c", Y[::-1])):
        np.savez(tmp_path / f"{name}.npz", x=X, y=y)
    hosts = [opened_by(Hosting(str(tmp_path / f"{n}.npz"), (7,)))(DIGITS_CONFIG) for n in "abc"]
    first, same, other = (host.hello().data_sha256 for host in hosts)
    assert first == same != other


def test_a_folder_of_idx_files_is_read_as_mnist_s(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", X)
    write_idx(tmp_path / "train-labels-idx1-ubyte", Y)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", X[:1])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", Y[:1])
    assert hello_of(tmp_path) == ((7,), (6,), False)
    data = owned(tmp_path)
    assert data.y.tolist() == Y.tolist()
    np.testing.assert_array_equal(np.reshape(data.x, X.shape), X / 16)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="has no labels train-labels-idx1-ubyte"):
        hello_of(tmp_path)


@pytest.mark.parametrize("label", ["label", "y"])
def test_rows_of_a_table_become_windows_of_the_task_s_shape(tmp_path: Path, label: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((3, 100, 6)).astype(np.float32)
    write_csv(tmp_path / "w.csv", x.reshape(300, 6), np.repeat([2, 0, 1], 100), label)
    data = owned(tmp_path / "w.csv", config=WATCH_CONFIG)
    assert data.y.tolist() == [2, 0, 1]
    whole = tmp_path / "w.npz"
    np.savez(whole, x=x, y=[2, 0, 1])
    np.testing.assert_array_equal(data.x, owned(whole, config=WATCH_CONFIG).x)


def test_empty_lines_of_a_table_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    write_csv(path, np.ones((100, 6)), [1] * 100)
    path.write_text(path.read_text().replace("\n", "\n\n", 3) + "\n\n")
    assert owned(path, config=WATCH_CONFIG).y.tolist() == [1]
    path.write_text(path.read_text() + "1,2\n")
    with pytest.raises(InputError, match=r"w\.csv: line 107 has 2 values, not 7$"):
        hello_of(path, config=WATCH_CONFIG)


def test_what_is_no_file_where_one_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(InputError, match=r"/t\.csv: cannot be read: Is a directory$"):
        hello_of(tmp_path)
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{kind}-ubyte").mkdir()
    with pytest.raises(InputError, match=r"images-idx3-ubyte: cannot be read: Is a directory$"):
        hello_of(tmp_path)


def test_windows_that_do_not_come_out_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "w.csv", np.ones((150, 6)), [0] * 150)
    with pytest.raises(InputError, match="150 rows cannot be cut into windows of 100 rows"):
        hello_of(tmp_path / "w.csv", config=WATCH_CONFIG)
    write_csv(tmp_path / "w.csv", np.ones((100, 6)), [0] * 99 + [1])
    with pytest.raises(InputError, match="with one label each"):
        hello_of(tmp_path / "w.csv", config=WATCH_CONFIG)


def test_a_folder_of_tables_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, label in (("b", 1), ("a", 0)):
        write_csv(tmp_path / f"{name}.csv", np.ones((100, 6)), [label] * 100)
    assert owned(tmp_path, config=WATCH_CONFIG).y.tolist() == [0, 1]
    write_csv(tmp_path / "c.csv", np.ones((100, 5)), [0] * 100)
    with pytest.raises(InputError, match="its files differ in their number of columns"):
        hello_of(tmp_path, config=WATCH_CONFIG)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no rows below its header"),
        ("a,label\n", "has no rows below its header"),
        ("a,b\n1,2\n", r"has no column 'label' or 'y' \(found: a, b\)"),
        ("a,label\n1,2\n1\n", "line 3 has 1 values, not 2"),
        ("a,label\nred,2\n", "not a table of numbers: .*'red'"),
        ("a,label\nnan,2\n", "'x' holds NaN or infinite values"),
        ("a,label\n1,2.5\n", "column 'label' must hold whole numbers"),
        ("a,label\n1,nan\n", "column 'label' must hold whole numbers"),
        ("a,label\n1,inf\n", "column 'label' must hold whole numbers"),
        ("a,label\n1,-2\n", "'y' holds -2, the least may be -1"),
        ("a,a,label\n1,2,3\n", "names column 'a' twice"),
        ("label\n1\n", "has no columns but 'label'"),
    ],
)
def test_a_table_that_is_unfit_is_refused_with_its_name(
    tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=rf"t\.csv: {reason}") as refused:
        hello_of(tmp_path / "t.csv", config=WATCH_CONFIG)
    assert "\n" not in str(refused.value)


def test_a_table_in_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"t\.csv: not a table of numbers"):
        hello_of(tmp_path / "t.csv")


def write_parquet(path: Path, x: Any, y: Any) -> None:
    columns = {"label": y, **{f"p{k}": column for k, column in enumerate(np.transpose(x))}}
    parquet.write_table(pa.table(columns), path)


def test_a_folder_of_parquet_files_is_read_as_one_of_csv_files_is(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((2, 100, 6)).astype(np.float32)
    for kind, write in ((".csv", write_csv), (".parquet", write_parquet)):
        folder = tmp_path / f"y=3{kind}"
        folder.mkdir()
        for place, name in enumerate("ba"):
            write(folder / f"{name}{kind}", x[place], [place] * 100)
    as_csv, as_parquet = (
        owned(tmp_path / f"y=3{kind}", config=WATCH_CONFIG) for kind in (".csv", ".parquet")
    )
    assert as_parquet.y.tolist() == as_csv.y.tolist() == [1, 0]
    np.testing.assert_array_equal(as_parquet.x, as_csv.x)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"label": [], "a": []}, "has no rows"),
        ({"a": [1.0], "b": [2.0]}, r"has no column 'label' or 'y' \(found: a, b\)"),
        ({"label": [1], "a": ["red"]}, "not a table of numbers: .*'red'"),
        ({"label": [1], "a": [None]}, "'x' holds NaN or infinite values"),
        ({"label": [None, 1], "a": [1.0, 2.0]}, "column 'label' must hold whole numbers"),
    ],
)
def test_a_parquet_file_that_is_unfit_is_refused_with_its_name(
    tmp_path: Path, columns: dict[str, list[object]], reason: str
) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=rf"t\.parquet: {reason}"):
        hello_of(tmp_path / "t.parquet", config=WATCH_CONFIG)


def test_a_parquet_file_that_names_a_column_twice_or_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["y", "a", "a"])
    parquet.write_table(twice, path)
    with pytest.raises(InputError, match=r"t\.parquet: names column 'a' twice"):
        hello_of(path)
    path.write_bytes(b"PAR1 broken")
    with pytest.raises(InputError, match=r"t\.parquet: not a Parquet file"):
        hello_of(path)


def test_without_pyarrow_parquet_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "w.parquet").touch()
    with pytest.raises(InputError, match=r"w\.parquet: to read Parquet, `pip install pyarrow`"):
        hello_of(tmp_path / "w.parquet")


READ = """
import resource, sys
from clients.hosting import Hosting
from clients.local_data import read_own

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak_mb()
split = read_own(Hosting(sys.argv[1], tuple(range(16))))
print(split.x.nbytes / 2**20, peak_mb() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in KB on Linux")
@pytest.mark.parametrize("name", ["{client}.npz", "all.npz"])
def test_a_gateway_s_examples_are_in_memory_but_once(tmp_path: Path, name: str) -> None:
    x, y = np.ones((16, 64, 8192)), np.zeros((16, 64), int)  # 4 MB a client
    for client_id in range(16):
        np.savez(tmp_path / f"{client_id}.npz", x=x[client_id], y=y[client_id])
    owners = np.repeat(range(16), 64)
    np.savez(tmp_path / "all.npz", x=x.reshape(-1, 8192), y=y.ravel(), client_id=owners)
    command = [sys.executable, "-W", "ignore", "-c", READ, str(tmp_path / name)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    size, grew = map(float, told.stdout.split())
    assert size == 64
    assert grew < 1.5 * size


def test_a_function_of_the_user_s_gives_each_client_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_sensors.py").write_text(
        "import numpy as np\n"
        "def load(client_id):\n"
        "    return np.zeros((client_id, 8, 8)), np.full(client_id, client_id)\n"
        "def fails(client_id):\n"
        "    return {}[client_id]\n"
        "def ragged(client_id):\n"
        "    return [[1, 2], [3]], [0, 1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    assert hello_of("own_sensors:load", 2, 5) == ((2, 5), (2, 5), False)
    assert owned("own_sensors:load", 5).y.tolist() == [5] * 5
    for data, reason in {
        "own_sensors:fails": "client 7: KeyError: 7",
        "own_sensors:ragged": "client 7: ValueError: setting an array element with a sequence",
        "own_sensors:absent": "client 7: AttributeError: module 'own_sensors'",
        "no_such_module:load": "client 7: ModuleNotFoundError: No module named",
    }.items():
        with pytest.raises(InputError, match=f"^--data {data}: {reason}"):
            hello_of(data)
    with pytest.raises(InputError, match=r"client 0: 'x' must be a non-empty array"):
        hello_of("own_sensors:load", 0)


def test_of_a_known_dataset_a_client_owns_what_it_owns_in_simulation() -> None:
    from clients.host import open_host

    whole, mine = open_host(DIGITS_CONFIG), opened_by(Hosting("digits", (3, 11)))(DIGITS_CONFIG)
    assert (mine.client_ids, mine.shared) == ((3, 11), False)
    np.testing.assert_array_equal(mine.data_of(11).x, whole.data_of(11).x)
    with pytest.raises(InputError, match="client 12: --data digits has clients 0 to 11"):
        hello_of("digits", 12)


def test_what_the_run_s_task_does_not_take_is_said_to_the_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", x=X[:, :5], y=Y)
    open_ = opened_by(Hosting(str(tmp_path / "odd.npz"), (7,)))
    with pytest.raises(InputError, match=r"shape \(5, 8\), task 'digits-cnn' takes \(1, 8, 8\)"):
        open_(DIGITS_CONFIG)
    np.savez(tmp_path / "odd.npz", x=X, y=Y + 5)
    label_14 = r"'odd\.npz, client 7' has label 14, task 'digits-cnn' has 10 labels, 0 to 9$"
    with pytest.raises(InputError, match=label_14):
        hello_of(tmp_path / "odd.npz")


def test_of_many_clients_the_one_whose_data_do_not_fit_is_named(tmp_path: Path) -> None:
    for client_id, y in ((1, Y), (2, Y + 5), (3, Y + 5)):
        np.savez(tmp_path / f"{client_id}.npz", x=X, y=y)
    with pytest.raises(InputError, match=r"dataset '\{client\}\.npz, client 2' has label 14"):
        hello_of(tmp_path / "{client}.npz", 1, 2, 3)
    np.savez(tmp_path / "2.npz", x=X[:, :5], y=Y)
    with pytest.raises(InputError, match=r"clients 1 and 2 .* \(8, 8\) and \(5, 8\)$"):
        hello_of(tmp_path / "{client}.npz", 1, 2)


def test_what_is_nowhere_is_refused_with_what_may_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no such file or folder; expected an \.npz"):
        hello_of(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no \.csv, \.parquet or idx files"):
        hello_of(tmp_path)

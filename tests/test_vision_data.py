"""Masks and boxes: how views are made, what is held out, how good boxes are."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clients.partitions import label_counts, partition
from shared_models.boxes import CELL, NUMBERS, USUAL, Found, average_precision, decode, iou
from shared_models.config import parse_data
from shared_models.datasets.catalog import CATALOG
from shared_models.datasets.dataset import Dataset
from shared_models.datasets.load import load_dataset
from shared_models.datasets.masks import FOREGROUND, SIDE
from shared_models.datasets.voc import BOXES, PATCH, boxes_in
from shared_models.errors import DataError, InputError


def loaded(name: str) -> Dataset:
    try:
        return load_dataset(name)
    except DataError as error:
        pytest.skip(f"NO {name.upper()} DATA: {error}")


@pytest.mark.parametrize("name", ["mnist-masks", "fashion-masks"])
def test_masks_are_a_function_of_the_data_alone(name: str) -> None:
    dataset = loaded(name)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (6_000, 1_000)
    assert dataset.digest() == CATALOG[name].content_sha256
    assert dataset.train.x[np.arange(2)].shape == dataset.train.y[:2].shape == (2, SIDE, SIDE)
    shown = np.asarray(dataset.test.x)[dataset.test.y == 1]
    assert shown.min() >= FOREGROUND


def test_brightness_alone_does_not_tell_the_foreground() -> None:
    test = loaded("mnist-masks").test
    assert test is not None
    x, y = np.asarray(test.x), test.y == 1
    told = [x >= threshold for threshold in range(100, 256, 10)]
    best = max(((t & y).sum((1, 2)) / (t | y).sum((1, 2))).mean() for t in told)
    assert 0.2 < best < 0.4


def test_trees_are_all_there_and_nobody_trains_on_the_test_columns() -> None:
    trees = loaded("trees")
    assert trees.test is not None
    assert (len(trees.train), len(trees.test)) == (4 * 1_150, 98)
    assert trees.digest() == CATALOG["trees"].content_sha256
    assert len(trees.client_names) == 4
    counts = [(split.y[..., 2] > split.y[..., 0]).sum() for split in (trees.train, trees.test)]
    assert counts == [4 * 2_181, 254]
    seen = {patch.tobytes() for patch in np.asarray(trees.train.x)}
    assert not seen & {patch.tobytes() for patch in np.asarray(trees.test.x)}


Corners: TypeAlias = tuple[int, int, int, int]


def photograph(folder: Path, name: str, boxes: list[Corners], sides: tuple[int, int]) -> None:
    """Writes a black image with white boxes, and the XML that says where they are."""
    image = np.zeros((sides[1], sides[0], 3), np.uint8)
    rows = ""
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = 255
        corners = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        rows += f"<object><name>it</name><bndbox>{corners}</bndbox></object>"
    PIL.Image.fromarray(image).save(folder / f"{name}.png")
    (folder / f"{name}.xml").write_text(f"<annotation>{rows}</annotation>")


def test_a_folder_of_ones_own_has_its_boxes_where_the_image_is_white(tmp_path: Path) -> None:
    photograph(tmp_path, "a", [(20, 40, 60, 80), (300, 10, 340, 50)], (384, 128))
    photograph(tmp_path, "b", [], (256, 160))
    own = load_dataset(f"{tmp_path}/")
    assert own.client_names == ("a", "b")
    assert own.test is not None
    for split in (own.train, own.test):
        assert split.client_id is not None
        for patch, boxes in zip(np.asarray(split.x), split.y, strict=True):
            drawn = np.zeros((PATCH, PATCH), bool)
            for left, top, right, bottom in boxes:
                drawn[top:bottom, left:right] = True
            # A box whose centre is in a neighbour's patch is white here and not a label.
            assert (patch[0][drawn] == 255).all()
    assert own.test.y[0, 0].tolist() == [300 // 2 - 128, 5, 170 - 128, 25]


def test_what_is_wrong_with_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no \.xml with boxes"):
        load_dataset(f"{tmp_path}/")
    photograph(tmp_path, "small", [(1, 1, 9, 9)], (100, 100))
    with pytest.raises(InputError, match="small: must be at least 256 x 128 pixels"):
        load_dataset(f"{tmp_path}/")
    crowd = [(k * 7, 0, k * 7 + 4, 9) for k in range(BOXES + 1)]
    photograph(tmp_path, "small", crowd, (256, 128))
    with pytest.raises(InputError, match="17 boxes in a patch"):
        load_dataset(f"{tmp_path}/")
    (tmp_path / "small.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read as an image"):
        load_dataset(f"{tmp_path}/")
    (tmp_path / "small.png").unlink()
    with pytest.raises(InputError, match="needs one image of the same name, there is: none"):
        load_dataset(f"{tmp_path}/")


@pytest.mark.parametrize("content", [b"", b"<a>", b"<a><object/></a>", b"\x00"])
def test_what_is_no_annotation_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"x\.xml: not a Pascal VOC annotation"):
        boxes_in(content, "x.xml")


def test_boxes_have_an_area() -> None:
    box = b"<xmin>5</xmin><ymin>1</ymin><xmax>5</xmax><ymax>9</ymax>"
    with pytest.raises(DataError, match="without an area"):
        boxes_in(b"<a><object><bndbox>" + box + b"</bndbox></object></a>", "x.xml")


def test_masks_and_boxes_have_no_label_to_be_dealt_by(tmp_path: Path) -> None:
    photograph(tmp_path, "a", [(20, 40, 60, 80)], (384, 128))
    boxes = load_dataset(f"{tmp_path}/").train
    for kind in ("shards", "dirichlet"):
        data = parse_data({"partition": kind, "clients": 2})
        with pytest.raises(InputError, match="one label an example; use iid, draws or natural"):
            partition(boxes, data, seed=0)
    whole = partition(boxes, parse_data({"partition": "iid", "clients": 1}), seed=0)
    found = (boxes.y[..., 2] > boxes.y[..., 0]).sum()
    assert label_counts(boxes, whole, 1, [0]).tolist() == [[found]]


def test_masks_of_ones_own_are_a_dataset(tmp_path: Path) -> None:
    x, y = np.zeros((3, 4, 5)), np.ones((3, 4, 5), np.int64)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    split = load_dataset(str(tmp_path / "a.npz")).train
    assert split.y.shape == (3, 4, 5)
    whole = partition(split, parse_data({"partition": "iid", "clients": 1}), seed=0)
    assert label_counts(split, whole, 2, [0]).tolist() == [[0, 60]]
    np.savez(tmp_path / "b.npz", x=x, y=y[:2])
    with pytest.raises(InputError, match="'y' must be 3 integers"):
        load_dataset(str(tmp_path / "b.npz"))


BOX = st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2).map(
    lambda own: [own[0], own[1], own[0] + own[2], own[1] + own[3]]
)


@given(st.lists(BOX, min_size=1, max_size=6), st.lists(BOX, min_size=1, max_size=6))
def test_overlap_is_symmetric_and_whole_with_itself(
    left: list[list[int]], right: list[list[int]]
) -> None:
    a, b = np.array(left), np.array(right)
    np.testing.assert_allclose(iou(a, b), iou(b, a).T)
    np.testing.assert_allclose(np.diag(iou(a, a)), 1.0)
    assert ((iou(a, b) >= 0) & (iou(a, b) <= 1 + 1e-12)).all()


def found(boxes: list[list[float]], scores: list[float]) -> Found:
    return Found(np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64))


def test_precision_is_that_of_the_curve_by_hand() -> None:
    truth: NDArray[np.float64] = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    both = found([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.8])
    assert average_precision([both], [truth]) == 1.0
    # Right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    mixed = found([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]], [0.9, 0.8, 0.7])
    assert average_precision([mixed], [truth]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    twice = found([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8])
    assert average_precision([twice], [truth]) == 0.5
    assert average_precision([found([], [])], [truth]) == 0.0
    assert np.isnan(average_precision([both], [truth[:0]]))


def test_boxes_come_out_where_the_numbers_say() -> None:
    numbers = np.full((1, NUMBERS, 2, 3), -9.0)
    numbers[0, :, 1, 2] = [3.0, 0.0, 0.0, np.log(8 / USUAL), np.log(4 / USUAL)]
    ((boxes, scores),) = decode(numbers)
    x, y = 2.5 * CELL, 1.5 * CELL
    np.testing.assert_allclose(boxes, [[x - 4, y - 2, x + 4, y + 2]])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-3)))

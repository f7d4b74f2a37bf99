"""Images with boxes, as Pascal VOC has them: an XML beside each image, or `Annotations/` of them.

Images are halved in size, then cut into patches of 64x64 pixels. Labels are the boxes whose centre
is in the patch, cut off at its edges: `(16, 4)` of left, top, right, bottom, filled with zeros. The
rightmost columns of patches of each image are the test set, and nobody trains on what they show.
What is trained on overlaps, and is there in four views, for from above there is no up: as it is,
mirrored, upside down, and both. Without them a small detector has the training set by heart in
three epochs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias
from xml.etree import ElementTree as ET  # what is read lies on the user's own disk

import numpy as np
from numpy.typing import NDArray

from shared_models.datasets.dataset import Dataset, Split
from shared_models.errors import DataError, InputError, one_line

PATCH = 64  # pixels of a halved image
HOP = 32  # between patches that are trained on
BOXES = 16  # of a patch, at most
TEST_FRACTION = 0.2  # of the columns, rounded up
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")

Image: TypeAlias = NDArray[np.uint8]
Boxes: TypeAlias = NDArray[np.int64]


class Scene(NamedTuple):
    """An image `(h, w, 3)` and its boxes `(k, 4)`, in pixels of it."""

    name: str
    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]


def read_voc(folder: Path) -> Dataset:
    """Reads a user's own folder; a client is an image. Raises `InputError` that names the file."""
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise InputError(f"{folder}: has no .xml with boxes (Pascal VOC)")
    try:
        return patches(folder.name, [_scene(folder, file) for file in files])
    except DataError as error:
        raise InputError(str(error)) from None


def _scene(folder: Path, file: Path) -> Scene:
    found = [path for path in sorted(folder.rglob(f"{file.stem}.*")) if path.suffix in _IMAGES]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{file}: needs one image of the same name, there is: {names}")
    boxes = boxes_in(file.read_bytes(), str(file))
    return Scene(file.stem, decode_image(found[0].read_bytes(), str(found[0])), boxes)


def decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """Returns the pixels of an image file, `(h, w, 3)`; `DataError` when it is none."""
    try:
        import PIL.Image
    except ModuleNotFoundError:
        raise InputError(f"{where}: to read images, `pip install pillow`") from None
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))
    except Exception as error:  # damaged images raise anything
        raise DataError(f"{where}: cannot be read as an image: {one_line(str(error))}") from None


def boxes_in(content: bytes, where: str) -> NDArray[np.float64]:
    """Returns the boxes of a VOC annotation, `(k, 4)`; `DataError` when it is none.

    >>> box = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>5</ymax>"
    >>> boxes_in(f"<a><object><bndbox>{box}</bndbox></object></a>".encode(), "x.xml").tolist()
    [[1.0, 2.0, 3.0, 5.0]]
    """
    try:
        objects = ET.fromstring(content).iter("object")  # noqa: S314  # see the import
        rows = [[float(own.findtext(f"bndbox/{key}", "")) for key in _CORNERS] for own in objects]
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"{where}: not a Pascal VOC annotation: {error}") from None
    boxes = np.array(rows, np.float64).reshape(-1, 4)
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise DataError(f"{where}: has a box without an area")
    return boxes


def patches(name: str, scenes: list[Scene]) -> Dataset:
    """Returns the patches of all scenes; `DataError` when one is too small or too crowded."""
    train, test = [], []
    for client_id, scene in enumerate(scenes):
        halved = _halved(scene)
        columns = halved.image.shape[1] // PATCH
        if columns < 2 or halved.image.shape[0] < PATCH:
            raise DataError(f"{scene.name}: must be at least {4 * PATCH} x {2 * PATCH} pixels")
        edge = (columns - int(np.ceil(columns * TEST_FRACTION))) * PATCH
        seen = [view for own in _cut(halved, 0, edge, HOP) for view in _views(own)]
        train += [(*own, client_id) for own in seen]
        test += [(*own, client_id) for own in _cut(halved, edge, columns * PATCH, PATCH)]
    return Dataset(name, _split(train), _split(test), tuple(scene.name for scene in scenes))


def _split(rows: list[tuple[Image, Boxes, int]]) -> Split:
    x, y, client_id = zip(*rows, strict=True)
    return Split(np.stack(x), np.stack(y), np.array(client_id, np.int64))


def _halved(scene: Scene) -> Scene:
    height, width = (size // 2 for size in scene.image.shape[:2])
    quarters = scene.image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    image = (quarters.sum(axis=(1, 3), dtype=np.int64) // 4).astype(np.uint8)
    return Scene(scene.name, image, scene.boxes / 2)


def _cut(scene: Scene, left: int, right: int, hop: int) -> Iterator[tuple[Image, Boxes]]:
    """Yields patches `(3, 64, 64)` between two columns, and the boxes in each."""
    for y in range(0, scene.image.shape[0] - PATCH + 1, hop):
        for x in range(left, right - PATCH + 1, hop):
            patch = scene.image[y : y + PATCH, x : x + PATCH]
            yield patch.transpose(2, 0, 1), _inside(scene, np.array([x, y, x, y]))


def _views(patch: tuple[Image, Boxes]) -> Iterator[tuple[Image, Boxes]]:
    """Yields a patch in four views, each with its boxes."""
    image, boxes = patch
    real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1, keepdims=True)
    mirrored = np.where(real, boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [PATCH, 0, PATCH, 0], 0)
    yield image, boxes
    yield image[:, :, ::-1], mirrored
    for view, own in ((image, boxes), (image[:, :, ::-1], mirrored)):
        over = np.where(real, own[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, PATCH, 0, PATCH], 0)
        yield view[:, ::-1], over


def _inside(scene: Scene, corner: NDArray[np.int64]) -> Boxes:
    own = scene.boxes - corner
    centres = (own[:, :2] + own[:, 2:]) / 2
    own = own[((centres >= 0) & (centres < PATCH)).all(axis=1)]
    if len(own) > BOXES:
        raise DataError(
            f"{scene.name}: {len(own)} boxes in a patch, at most {BOXES} are looked for"
        )
    padded = np.zeros((BOXES, 4), np.int64)
    padded[: len(own)] = np.clip(own.round(), 0, PATCH)
    return padded

"""Reads what a user wants predicted: npz, npy, images, CSV or text, from a file or a pipe."""

from __future__ import annotations

import csv
import io
import math
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared_models.errors import InputError, one_line
from shared_models.inputs import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

STDIN = "-"
_MOST_BYTES = 1 << 28
_SHADES = 65535
_ARRAYS = (b"PK\x03\x04", b"\x93NUMPY")
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")


def parse_examples(
    content: bytes, source: str, inputs: InputSpec, *, invert: bool = False
) -> NDArray[Any]:
    """Returns raw examples `(n, ...)` that `inputs` can prepare; their bytes tell what they are.

    `source` is what an error calls them, `invert` makes black of an image's white. Raises
    `InputError` for what cannot be input.
    """
    if content.startswith(_IMAGES):
        return _image(content, source, inputs, invert=invert)
    raw = _arrays(content, source) if content.startswith(_ARRAYS) else _csv(content, source)
    return _fitted(raw, source, inputs)


def is_text(content: bytes) -> bool:
    """Whether a content is neither arrays nor an image."""
    return not content.startswith((*_ARRAYS, *_IMAGES))


def parse_text(content: bytes, source: str) -> str:
    """Returns a text without the line break at its end; `InputError` when it is no UTF-8."""
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError(f"{source}: is no text in UTF-8") from None


def read_bytes(source: str) -> bytes:
    """Returns a file's content, or that of standard input; `InputError` when it is too much."""
    if source == STDIN:
        content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    else:
        if not Path(source).is_file():
            raise InputError(f"{source}: there is no such file")
        with Path(source).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise InputError(f"{source}: has more than {_MOST_BYTES >> 20} MB; give it in parts")
    if not content:
        raise InputError(f"{source}: is empty")
    return content


def _arrays(content: bytes, source: str) -> NDArray[Any]:
    try:
        if content.startswith(b"PK"):
            _check_zip(content)
        found = np.load(io.BytesIO(content), allow_pickle=False)
        raw = np.asarray(found if isinstance(found, np.ndarray) else found[_name_of(found.files)])
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except Exception as error:  # numpy raises anything on a damaged file
        raise InputError(f"{source}: damaged: {one_line(str(error))}") from None
    if raw.dtype.kind not in "fiub":
        raise InputError(f"{source}: has {raw.dtype}, expected numbers")
    return raw


def _check_zip(content: bytes) -> None:
    """Refuses an npz that claims to be large: it is unpacked in memory."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if sum(entry.file_size for entry in file.infolist()) > _MOST_BYTES:
            raise InputError(f"unpacks to more than {_MOST_BYTES >> 20} MB; give it in parts")


def _name_of(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    for name in ("x", "x_test"):
        if name in names:
            return name
    raise InputError(f"has no array x; it has {', '.join(names) or 'none'}")


def _csv(content: bytes, source: str) -> NDArray[Any]:
    """Returns the rows of numbers; a first row of words is a header."""
    try:
        lines = [row for row in csv.reader(content.decode().splitlines()) if row]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{source}: is neither npz, npy, an image nor CSV") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append([float(cell) for cell in line])
        except ValueError:
            if number > 1:
                raise InputError(f"{source}: row {number} has a cell that is no number") from None
    if len({len(row) for row in rows}) != 1:
        raise InputError(f"{source}: expected rows of numbers, all of the same length")
    return np.array(rows)


def _fitted(raw: NDArray[Any], source: str, inputs: InputSpec) -> NDArray[Any]:
    """Returns the array as examples: as it is, one example, or rows that make up examples."""
    size = math.prod(inputs.shape)
    if not np.isfinite(raw).all():
        raise InputError(f"{source}: has NaN or infinite values")
    if inputs.fits(raw.shape[1:]):
        examples = raw
    elif inputs.fits(raw.shape):
        examples = raw[None]
    elif raw.ndim == 2 and raw.shape[1] == inputs.shape[-1] and raw.size % size == 0:
        examples = raw.reshape(-1, *inputs.shape)
    else:
        raise InputError(f"{source}: has shape {raw.shape}, expected (n, {_told(inputs)})")
    if inputs.dtype == "int64" and not ((examples >= 0) & (examples < inputs.tokens)).all():
        raise InputError(f"{source}: has tokens outside 0 to {inputs.tokens - 1}")
    if inputs.dtype == "int64" and not (examples == np.floor(examples)).all():
        raise InputError(f"{source}: has tokens that are no whole numbers")
    if not len(examples):
        raise InputError(f"{source}: has no examples")
    return examples


def _told(inputs: InputSpec) -> str:
    return ", ".join(map(str, inputs.shape))


def _image(content: bytes, source: str, inputs: InputSpec, *, invert: bool) -> NDArray[Any]:
    """Returns one image as bright and as large as the task's own, `(1, C, H, W)`."""
    if len(inputs.shape) != 3 or inputs.shape[0] not in {1, 3}:
        raise InputError(f"{source}: is an image; this model takes ({_told(inputs)})")
    channels, height, width = inputs.shape
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = _eight_bits(Image.open(io.BytesIO(content)))
        # A transparent background is a white one.
        flat = Image.new("RGBA", opened.size, "white")
        flat.alpha_composite(opened.convert("RGBA"))
        resized = flat.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{source}: is no image that can be read: {one_line(str(error))}"
        ) from None
    pixels = np.asarray(resized, np.float32).reshape(height, width, channels).transpose(2, 0, 1)
    shade = pixels / 255.0
    return ((1.0 - shade if invert else shade) * inputs.white)[None]


def _eight_bits(opened: Image) -> Image:
    """Returns an image whose shades are 0 to 255: those of 16 bits would be cut off at 255."""
    from PIL.Image import fromarray

    if not opened.mode.startswith(("I", "F")):
        return opened
    shades = np.asarray(opened, np.float64)
    if opened.mode == "F" or shades.min() < 0 or shades.max() > _SHADES:
        raise ValueError("its shades are neither of 8 nor of 16 bits")
    return fromarray(np.round(shades / _SHADES * 255).astype(np.uint8))

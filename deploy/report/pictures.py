"""What the model says of single examples: pictures, curves, text."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Sequence

from deploy.report.blocks import Block, Curves, Exhibit, Gallery, Image, Note, Quote, Section
from deploy.report.story import Story
from deploy.report.words import percent
from server.sample_records import Box, Picture, Samples, Shown

_MOST_CURVES = 6
_COLOURS = ("blue", "orange", "green", "purple", "ochre", "grey")  # as the style sheet has them


def pictures(story: Story) -> Section:
    """Returns the section that shows single examples."""
    title = "What does it say?"
    samples = story.samples
    if samples is None:
        text = "Not recorded: sample predictions. samples.json is written when all is learnt."
        return Section("samples", title, (Note(text, "missing"),))
    blocks: list[Block] = [*_galleries(samples)]
    blocks += [Quote(own.prompt, own.text) for own in samples.written]
    if samples.written and samples.temperature is not None:
        drawn = f"Drawn character by character at temperature {samples.temperature:g}."
        blocks.append(Note(f"In bold what the model wrote, before it what it was given. {drawn}"))
    if not blocks:
        blocks.append(Note("There is no way to draw what this model takes or says.", "missing"))
    return Section("samples", title, tuple(blocks))


def _galleries(samples: Samples) -> list[Gallery]:
    dense = samples.answer == "made"
    titles = {
        "classes": "Test examples as they come",
        "made": "Made out of noise",
        "mask": "Test images: what is given, what is right, what the model says",
        "boxes": "Test images with boxes",
        "values": "Test examples, and what the model makes of them",
    }
    notes = {
        "boxes": "White: what is right. Dashed: what the model says.",
        "values": "Dashed: what the model makes of the solid one.",
    }
    groups = [
        (titles.get(samples.answer, "Examples"), samples.shown, notes.get(samples.answer, "")),
        ("Mistakes, those of which it was surest first", samples.wrong, ""),
    ]
    found = []
    for title, shown, note in groups:
        exhibits = tuple(own for one in shown if (own := exhibit(one)) is not None)
        if exhibits:
            told = f"{_curves_note(shown)} {note}".strip()
            found.append(Gallery(title, exhibits, told, dense))
    return found


def _curves_note(shown: Sequence[Shown]) -> str:
    """Returns what the curves are, in the order of their colours; nothing where there are none."""
    first = next((one.series for one in shown if one.series), ())
    if not first:
        return ""
    count, steps = min(len(first), _MOST_CURVES), len(first[0])
    colours = ", ".join(f"{k} {name}" for k, name in enumerate(_COLOURS[:count], 1))
    which = f"channels in the order of the input: {colours}" if count > 1 else "the one channel"
    left_out = f" (the other {len(first) - count} are not drawn)" if len(first) > count else ""
    return (
        f"A curve is a channel of the input over {steps} time steps, {which}{left_out}; the height "
        "of each picture is from its smallest to its largest value."
    )


def exhibit(shown: Shown) -> Exhibit | None:
    """Returns an example to look at; None where nothing of it can be drawn."""
    named = (("input", shown.picture), ("right", shown.truth_picture), ("model", shown.made))
    several = sum(own is not None for _, own in named) > 1
    images = tuple(
        image
        for label, own in named
        if own is not None and (image := _image(own, shown, label, several=several)) is not None
    )
    curves = _curves(shown) if shown.series else None
    lines = _lines(shown)
    if not images and curves is None and not (shown.text and lines):
        return None
    text = f"… {shown.text[-60:]}" if shown.text else ""
    return Exhibit(
        text, images, curves, lines, wrong=bool(shown.said) and shown.said != shown.truth
    )


def _lines(shown: Shown) -> tuple[str, ...]:
    lines = []
    if shown.said:
        sure = "" if shown.sure is None else f" ({percent(shown.sure)})"
        lines.append(f"{_visible(shown.said)}{sure}")
        if shown.said != shown.truth:
            lines.append(f"is {_visible(shown.truth)}")
    return tuple(lines)


def _visible(label: str) -> str:
    return repr(label) if label.isspace() else label


def _image(own: Picture, shown: Shown, label: str, *, several: bool) -> Image | None:
    try:
        data = png(own)
    except (ValueError, binascii.Error):
        return None
    said = f"; the model says {shown.said}, it is {shown.truth}" if shown.said else ""
    boxes = label == "input"
    told = (
        f", {len(shown.truth_boxes)} boxes are right, {len(shown.boxes)} said"
        if (boxes and (shown.truth_boxes or shown.boxes))
        else ""
    )
    return Image(
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
        f"{label}: {own.width} by {own.height} pixels{said}{told}",
        own.width,
        own.height,
        _sized(shown.truth_boxes) if boxes else (),
        _sized(shown.boxes) if boxes else (),
        label if several else "",
    )


def _sized(boxes: Sequence[Box]) -> tuple[Box, ...]:
    return tuple((a, b, max(0.0, c - a), max(0.0, d - b)) for a, b, c, d in boxes[:50])


def png(own: Picture) -> bytes:
    r"""Returns a picture as a file; `ValueError` when its pixels are too few or no base64.

    >>> png(Picture(1, 1, 1, "AA=="))[:4]
    b'\x89PNG'
    """
    pixels = base64.b64decode(own.pixels, validate=True)
    row = own.width * own.channels
    if len(pixels) != own.height * row or own.channels == 2:
        raise ValueError("the pixels are not as many as the picture is large")
    lines = b"".join(b"\0" + pixels[k : k + row] for k in range(0, len(pixels), row))
    header = struct.pack(
        ">IIBBBBB", own.width, own.height, 8, 2 if own.channels == 3 else 0, 0, 0, 0
    )
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _curves(shown: Shown) -> Curves:
    given, made = shown.series[:_MOST_CURVES], shown.series_made[:_MOST_CURVES]
    values = [value for own in (*given, *made) for value in own] or [0.0]
    low, high = min(values), max(values)
    scale = 36.0 / (high - low or 1.0)

    def points(own: Sequence[float]) -> str:
        step = 100.0 / max(1, len(own) - 1)
        return " ".join(f"{k * step:.1f},{38 - (v - low) * scale:.1f}" for k, v in enumerate(own))

    said = f"; the model says {shown.said}, it is {shown.truth}" if shown.said else ""
    alt = f"{len(given)} curves of {len(given[0])} steps, from {low:.3g} to {high:.3g}{said}"
    return Curves(tuple(map(points, given)), tuple(map(points, made)), alt)

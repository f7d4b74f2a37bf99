"""`wildflower predict` and `bench`: what a device does with an exported file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from deploy.edge.bench import Timing
    from deploy.edge.card import Card
    from deploy.edge.predict import Box, Guess, Sampling
    from deploy.edge.runtimes import Model
    from shared_models.answers import Answer

Runtime = Annotated[
    str, typer.Option(help="onnxruntime, litert or tflite-runtime; the first that is installed.")
]


def predict(
    file: Path,
    source: Annotated[
        str,
        typer.Option(
            "--input", help="npz, npy, CSV, an image, a text or its file; - is standard input."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="So many labels of each example.")] = 3,
    invert: Annotated[bool, typer.Option(help="Make black of an image's white.")] = False,
    generate: Annotated[
        int | None, typer.Option(min=1, help="Go on with the text for so many characters.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="0: always the likeliest character.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Other text for another seed.")] = 0,
    runtime: Runtime = "",
    as_json: AsJson = False,
) -> None:
    """Tell what a file makes of an input: labels, a mask, boxes, values, or more of a text.

    FILE is an .onnx or .tflite file. Labels and normalisation lie beside it or in it. Needs its
    runtime only, no torch.

    Example: wildflower predict model-int8.tflite --input digit.png --invert
    """
    from deploy.edge.card import read_card
    from deploy.edge.predict import Sampling
    from deploy.edge.runtimes import open_model

    card = read_card(file)
    with open_model(file, runtime) as model:
        if generate is None:
            _PRINTED[card.answer](model, card, (source, top, invert), as_json)
        else:
            _print_text(model, card, source, Sampling(generate, temperature, seed), as_json)


def _print_labels(model: Model, card: Card, asked: tuple[str, int, bool], as_json: bool) -> None:
    from deploy.edge.predict import classify, read_input

    source, top, invert = asked
    guesses = classify(model.predict, card, read_input(source, card, invert=invert), top)
    if as_json:
        print_json([[asdict(guess) for guess in one] for one in guesses])
        return
    print_table(
        ("example ", "label", "score ", "then"),
        [
            (place, _printable(first.label), f"{first.score:.4f}", _told(others))
            for place, (first, *others) in enumerate(guesses)
        ],
    )


def _print_masks(model: Model, card: Card, asked: tuple[str, int, bool], as_json: bool) -> None:
    from deploy.edge.predict import read_input, segment

    source, _, invert = asked
    masks = segment(model.predict, card, read_input(source, card, invert=invert))
    if as_json:
        print_json([asdict(mask) for mask in masks])
        return
    rows = [(place, *(f"{own:.4f}" for own in m.shares.values())) for place, m in enumerate(masks)]
    print_table(("example ", *(f"{label} " for label in card.labels)), rows)


def _print_values(model: Model, card: Card, asked: tuple[str, int, bool], as_json: bool) -> None:
    from deploy.edge.predict import evaluate, read_input

    source, _, invert = asked
    found = evaluate(model.predict, card, read_input(source, card, invert=invert))
    if as_json:
        print_json([asdict(one) for one in found])
        return
    columns = ("example ", "from ", "mean ", "to ", "error against the input ")
    rows = [
        (
            place,
            *("" if v is None else f"{v:.4g}" for v in (one.low, one.mean, one.high, one.error)),
        )
        for place, one in enumerate(found)
    ]
    print_table(columns, rows)


def _print_boxes(model: Model, card: Card, asked: tuple[str, int, bool], as_json: bool) -> None:
    from deploy.edge.predict import locate, read_input

    source, _, invert = asked
    found = locate(model.predict, card, read_input(source, card, invert=invert))
    if as_json:
        print_json([[asdict(box) for box in boxes] for boxes in found])
        return
    rows = [
        (place, _printable(own.label), f"{own.score:.4f}", *(f"{v:.1f}" for v in _corners(own)))
        for place, boxes in enumerate(found)
        for own in boxes
    ]
    print_table(("example ", "label", "score ", "left ", "top ", "right ", "bottom "), rows)


def _corners(box: Box) -> tuple[float, ...]:
    return box.left, box.top, box.right, box.bottom


_PRINTED: Mapping[Answer, Callable[[Model, Card, tuple[str, int, bool], bool], None]] = {
    "classes": _print_labels,
    "mask": _print_masks,
    "values": _print_values,
    "boxes": _print_boxes,
}


def _told(guesses: Sequence[Guess]) -> str:
    return ", ".join(f"{_printable(guess.label)} {guess.score:.4f}" for guess in guesses)


def _printable(label: str) -> str:
    return label if label.strip() and label.isprintable() else repr(label)


def _print_text(model: Model, card: Card, source: str, how: Sampling, as_json: bool) -> None:
    from deploy.edge.predict import generate, read_prompt

    prompt = read_prompt(source, card)
    characters = generate(model.predict, card, prompt, how)
    if as_json:
        print_json({"prompt": prompt, "text": "".join(characters), **asdict(how)})
        return
    print(prompt, end="")
    for character in characters:
        print(character, end="", flush=True)
    print()


def bench(
    file: Path,
    runs: Annotated[
        int, typer.Option(min=1, max=100_000, help="So many examples, one by one.")
    ] = 200,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, max=256, help="May be repeated; 1 and all cores.")
    ] = None,
    runtime: Runtime = "",
    as_json: AsJson = False,
) -> None:
    """Time a file on this machine: latency, throughput, memory, cold start.

    FILE is an .onnx or .tflite file, also one that Wildflower did not make. It is timed in each
    runtime that this machine has. Needs no torch.

    Example: wildflower bench model-int8.tflite --threads 1 --threads 4 --json
    """
    from deploy.edge.bench import bench as measure
    from deploy.edge.bench import machine
    from shared_models.machine import cores

    counts = tuple(dict.fromkeys(threads or (1, cores())))
    timings, failed = measure(file, runs, counts, runtime)
    if as_json:
        told = {"file": str(file), "size_bytes": file.stat().st_size, "machine": machine()}
        found = {
            "timings": [asdict(one) for one in timings],
            "failed": [asdict(one) for one in failed],
        }
        print_json({**told, **found})
    else:
        print_table(_TIMES, [_timing_cells(timing) for timing in timings])
        for one in failed:
            print(f"failed on {one.threads} threads: {one.reason}")


_TIMES = (
    "runtime",
    "threads ",
    "p50 ms ",
    "p95 ms ",
    "p99 ms ",
    "examples/s ",
    "peak MB ",
    "open ms ",
    "cold start ms ",
)


def _timing_cells(timing: Timing) -> tuple[str, ...]:
    return (
        f"{timing.runtime} {timing.version}",
        f"{timing.threads}",
        f"{timing.p50_ms:.3f}",
        f"{timing.p95_ms:.3f}",
        f"{timing.p99_ms:.3f}",
        f"{timing.per_second:.0f}",
        f"{timing.peak_mb:.0f}",
        f"{timing.open_ms:.0f}",
        f"{timing.cold_start_ms:.0f}",
    )

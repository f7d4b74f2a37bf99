"""The final model looked at: what it says of test examples, what it makes, what it mixes up."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from server.evaluation import evaluation_split
from server.events import Notice
from server.sample_records import (
    MOST_SIDE,
    SAMPLES,
    Box,
    Picture,
    Samples,
    Shown,
    Written,
    picture,
)
from server.stage import Run
from shared_models.arrays import Arrays
from shared_models.boxes import decode, real_boxes
from shared_models.config import Config
from shared_models.datasets.dataset import Split
from shared_models.errors import one_line
from shared_models.files import write_atomic
from shared_models.inputs import InputSpec
from shared_models.randomness import generator
from shared_models.task import Task, as_given

_EXAMPLES = 2000
_SHOWN = 12
_MADE = 36
_BATCH = 100
_MOST_LABELS = 100
_PROMPTS, _CHARACTERS, _TEMPERATURE = 3, 200, 0.7
_LEAST_SCORE = 0.3  # of a box that is drawn

Floats = NDArray[np.float32]


def keep_samples(run: Run, params: Arrays) -> None:
    """Writes the samples of a run's final weights; what cannot be made is told, and ends no run."""
    path = run.folder.path / SAMPLES
    try:
        samples = sampled(run.config, run.task, params)
        if samples is not None:
            write_atomic(path, json.dumps(asdict(samples), allow_nan=False).encode())
    except Exception as error:  # a model of a user's own may answer anything
        reason = one_line(f"{type(error).__name__}: {error}")
        run.observe(Notice(f"{SAMPLES} cannot be made: {reason}"))


def sampled(config: Config, task: Task, params: Arrays) -> Samples | None:
    """Returns what there is to see of final weights, a pure function of these; None for nothing.

    There is nothing where the last stage keeps layers on the clients, and where the server has no
    test data.
    """
    split = evaluation_split(config, task)
    if config.learning_stages[-1].personal or split is None:
        return None
    model = task.model().eval()
    model.load_state_dict(params)
    model.float()
    if task.deployed is not None:
        return _made_of_noise(config, task, model)
    return _answered(config, task, model, split)


def _made_of_noise(config: Config, task: Task, model: nn.Module) -> Samples | None:
    ours = task.deployed
    if ours is None or not _is_image(task.input) or task.target is not as_given:
        return None
    drawn = ours.draw(generator(config.seed, "samples"), _MADE)
    made = _outputs(model.get_submodule(ours.part), ours.input.prepare(drawn))
    pictures = _pictures(task.input, made)
    return Samples(_MADE, "made", shown=tuple(Shown(made=one) for one in pictures))


def _answered(config: Config, task: Task, model: nn.Module, split: Split) -> Samples:
    count = min(_EXAMPLES, len(split))
    spread = np.linspace(0, len(split) - 1, count).astype(np.int64)
    x, y = task.input.prepare(split.x[spread]), split.y[spread]
    outputs = _outputs(model, x)
    bare = Samples(count, task.answer, task.labels)
    places = np.unique(np.linspace(0, count - 1, min(_SHOWN, count)).astype(np.int64))
    if task.answer == "classes":
        return _classes(config, task, model, (bare, x, y, outputs, places))
    inputs = _inputs(task.input, x[places])
    match task.answer:
        case "mask":
            shown = _masks(inputs, y[places], outputs[places])
        case "boxes":
            shown = _boxes(inputs, y[places], outputs[places])
        case _:
            shown = _values(task, inputs, outputs[places])
    return replace(bare, shown=tuple(shown))


@torch.inference_mode()
def _outputs(model: nn.Module, x: NDArray[Any]) -> Floats:
    parts = [model(torch.from_numpy(x[k : k + _BATCH])) for k in range(0, len(x), _BATCH)]
    return np.concatenate([part.float().numpy() for part in parts])


def _classes(
    config: Config,
    task: Task,
    model: nn.Module,
    measured: tuple[Samples, NDArray[Any], NDArray[np.int64], Floats, NDArray[np.int64]],
) -> Samples:
    bare, x, y, outputs, places = measured
    told, sure = outputs.argmax(axis=1), _softmax(outputs).max(axis=1)
    names = functools.partial(_name, task.labels)

    def show(chosen: NDArray[np.int64]) -> tuple[Shown, ...]:
        inputs = _inputs(task.input, x[chosen], task.labels)
        answers = zip(y[chosen].tolist(), told[chosen].tolist(), sure[chosen].tolist(), strict=True)
        return tuple(
            replace(one, truth=names(truth), said=names(said), sure=round(chance, 4))
            for one, (truth, said, chance) in zip(inputs, answers, strict=True)
        )

    mistakes = np.flatnonzero(told != y)
    worst = mistakes[np.argsort(-sure[mistakes], kind="stable")][:_SHOWN]
    done = replace(bare, shown=show(places), wrong=show(worst))
    if outputs.shape[1] <= _MOST_LABELS:
        done = replace(done, confusion=confusion(y, told, outputs.shape[1]))
    if _are_characters(task):
        text = _write_on(task, model, x[places][-_PROMPTS:], config.seed)
        done = replace(done, written=text, temperature=_TEMPERATURE)
    return done


def confusion(
    truth: NDArray[np.int64], told: NDArray[np.int64], classes: int
) -> tuple[tuple[int, ...], ...]:
    """Returns how often each class was taken for which: a row per true class.

    >>> confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
    ((1, 0), (1, 1))
    """
    counts = np.bincount(truth * classes + told, minlength=classes * classes)
    return tuple(tuple(row) for row in counts.reshape(classes, classes).tolist())


def _name(labels: Sequence[str], place: int) -> str:
    return labels[place] if place < len(labels) else str(place)


def _softmax(logits: Floats) -> NDArray[np.float64]:
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return scores


def _are_characters(task: Task) -> bool:
    characters = task.input.dtype == "int64" and len(task.labels) > 2
    return characters and all(len(label) == 1 for label in task.labels)


@torch.inference_mode()
def _write_on(
    task: Task, model: nn.Module, windows: NDArray[np.int64], seed: int
) -> tuple[Written, ...]:
    """Returns what the model goes on with after some windows, character by character."""
    rng, now = generator(seed, "samples", "text"), windows
    for _ in range(_CHARACTERS):
        chances = _softmax(_outputs(model, now[:, -windows.shape[1] :]) / _TEMPERATURE)
        drawn = (chances.cumsum(axis=1) > rng.random((len(now), 1))).argmax(axis=1)
        now = np.append(now, drawn[:, None], axis=1)
    texts = ["".join(task.labels[k] for k in row) for row in now.tolist()]
    length = windows.shape[1]
    return tuple(Written(text[:length], text[length:]) for text in texts)


def _inputs(spec: InputSpec, x: NDArray[Any], labels: Sequence[str] = ()) -> list[Shown]:
    """Returns what can be seen of model input: an image, curves, or text."""
    if _is_image(spec):
        return [Shown(picture=one) for one in _pictures(spec, x)]
    if spec.dtype == "int64":
        readable = len(labels) > 2 and all(len(label) == 1 for label in labels)
        texts = ["".join(_name(labels, k) for k in row) if readable else "" for row in x.tolist()]
        return [Shown(text=text) for text in texts]
    return [Shown(series=own) for own in _series(spec, x)]


def _is_image(spec: InputSpec) -> bool:
    fits = len(spec.shape) == 3 and spec.shape[0] in {1, 3} and max(spec.shape) <= MOST_SIDE
    return fits and spec.dtype == "float32"


def _pictures(spec: InputSpec, values: NDArray[Any]) -> list[Picture]:
    """Returns model input, or what looks like it, as images."""
    raw = values.reshape(len(values), *spec.shape) * np.array(spec.std) + np.array(spec.mean)
    bright = np.clip(np.nan_to_num(raw) / spec.white * 255.0, 0, 255).round().astype(np.uint8)
    last = np.moveaxis(bright, 1, -1)
    return [picture(one[..., 0] if one.shape[-1] == 1 else one) for one in last]


def _series(spec: InputSpec, x: NDArray[Any]) -> list[tuple[tuple[float, ...], ...]]:
    """Returns curves `(channels, steps)` of model input `(n, steps, channels)`."""
    if len(spec.shape) != 2:
        return [()] * len(x)
    values = np.round(np.moveaxis(x.reshape(len(x), *spec.shape).astype(float), 1, 2), 4)
    return [tuple(tuple(row) for row in one.tolist()) for one in values]


def _masks(inputs: Sequence[Shown], y: NDArray[np.int64], outputs: Floats) -> list[Shown]:
    single = outputs.shape[1] == 1
    told = (outputs[:, 0] > 0).astype(np.int64) if single else outputs.argmax(axis=1)
    step = 255 // max(1, int(max(told.max(), y.max())))
    grey = [(own * step).astype(np.uint8) for own in (y, told)]
    return [
        replace(one, truth_picture=picture(truth), made=picture(made))
        for one, truth, made in zip(inputs, *grey, strict=True)
    ]


def _boxes(inputs: Sequence[Shown], y: NDArray[np.int64], outputs: Floats) -> list[Shown]:
    found = decode(outputs, least=_LEAST_SCORE)
    return [
        replace(one, truth_boxes=_plain(real_boxes(truth)), boxes=_plain(own.boxes))
        for one, truth, own in zip(inputs, y, found, strict=True)
    ]


def _plain(boxes: NDArray[Any]) -> tuple[Box, ...]:
    rounded = np.round(boxes.astype(float), 1).tolist()
    return tuple((left, top, right, bottom) for left, top, right, bottom in rounded)


def _values(task: Task, inputs: Sequence[Shown], outputs: Floats) -> list[Shown]:
    """Returns what an autoencoder makes of its input beside it."""
    if math.prod(outputs.shape[1:]) != math.prod(task.input.shape):
        return list(inputs)
    if _is_image(task.input):
        made = _pictures(task.input, outputs)
        return [replace(one, made=own) for one, own in zip(inputs, made, strict=True)]
    curves = _series(task.input, outputs)
    return [replace(one, series_made=own) for one, own in zip(inputs, curves, strict=True)]

"""A look at a task that somebody wrote, before anything is trained or written.

What is wrong with a model is else told by whichever client meets it first, or by a device.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shared_models.errors import InputError, one_line
from shared_models.inputs import InputSpec
from shared_models.objectives.supervised import supervised
from shared_models.task import Task
from shared_models.tasks.own import file_of

_EXAMPLES = 2  # one is too few for a normalisation over a batch


def try_out(name: str, task: Task) -> None:
    """Raises `InputError` unless a task's model answers, as its labels and its loss want it.

    `name` is that of the config, `module:attribute`: the file is told, and the line if it is there.
    """
    _check_labels(name, task.labels)
    if not isinstance(task.input, InputSpec):
        raise InputError(f"task {name!r}: input is {task.input!r}, not an InputSpec")
    if isinstance(task.make_model, nn.Module):
        raise InputError(
            f"task {name!r}: make_model is a model, and is to make one: give its class, "
            f"{type(task.make_model).__name__}"
        )
    with _told(name, "make_model(), of this input and label_shape"):
        x, y = torch.from_numpy(task.sample(_EXAMPLES)), torch.zeros(_EXAMPLES, *task.label_shape)
        model = task.model().eval()
    shown = f"the model was shown {tuple(x.shape)}"
    with _told(name, shown), torch.no_grad():
        outputs = model(x)
    _check_outputs(name, task, outputs, shown)
    if task.objective is supervised:  # one of their own may call a model as it likes
        with _told(name, f"in training, {shown}"):
            draws = _draws(model, x)
        _check_draws(name, draws=draws)
    with _told(name, f"{shown} and answered {tuple(outputs.shape)}"):
        _check_measures(task, outputs, task.target(x, y.long()))


def _draws(model: nn.Module, x: Tensor) -> bool:
    """Whether a model in training draws from torch's generator, which no two workers share."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        model.train()(x)
        return not torch.equal(before, torch.get_rng_state())


def _check_draws(name: str, *, draws: bool) -> None:
    if draws:
        raise InputError(
            f"task {name!r}: in training the model draws from torch's generator, as nn.Dropout "
            "does, so that no two runs would be alike: take Dropout or Gaussian of "
            "shared_models.noise"
        )


def _check_measures(task: Task, outputs: Tensor, target: Tensor) -> None:
    loss, metrics = task.loss(outputs, target), task.metrics(outputs, target)
    if not isinstance(loss, Tensor) or loss.shape != ():
        raise TypeError("loss is to return one number, the mean over the batch, as a tensor")
    shapes = {name: tuple(own.shape) for name, own in metrics.items()}
    if any(shape != (_EXAMPLES,) for shape in shapes.values()):
        raise TypeError(f"metrics are to return a value an example, not of shape {shapes}")


def _check_labels(name: str, labels: object) -> None:
    if not isinstance(labels, tuple) or not all(isinstance(label, str) for label in labels):
        raise InputError(
            f'task {name!r}: labels are to be a tuple of texts, ("one", "other") or of one alone '
            f'("one",), not {labels!r}'
        )
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError(f"task {name!r}: the label {twice!r} is there twice")


def _check_outputs(name: str, task: Task, outputs: object, shown: str) -> None:
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"task {name!r}: {shown} and answered with a {type(outputs).__name__}, not a tensor"
        )
    expected = (_EXAMPLES, len(task.labels))
    is_plain = task.answer == "classes" and task.labels and not task.label_shape
    if is_plain and tuple(outputs.shape) != expected:
        raise InputError(
            f"task {name!r}: {shown} and answered {tuple(outputs.shape)}; with "
            f"{len(task.labels)} labels it is to answer {expected}"
        )


@contextlib.contextmanager
def _told(name: str, doing: str) -> Iterator[None]:
    """Tells what somebody else's code raises in a line, with its place in their file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        file = file_of(name)
        own = [at for at in traceback.extract_tb(error.__traceback__) if at.filename == file]
        place = f"{file}, line {own[-1].lineno}" if own else file
        reason = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"task {name!r}: {place}: {reason} ({doing})") from None

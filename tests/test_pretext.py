"""The formulas of learning without labels, by hand on numbers that can be followed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from shared_models.arrays import Arrays, in_dtype, roles_of
from shared_models.augmentations import augmentation_of
from shared_models.gradients import by_autograd
from shared_models.inputs import InputSpec
from shared_models.objectives import Batch, Broadcast, Ground, Noise
from shared_models.objectives.denoising import denoising
from shared_models.objectives.fedema import fedema
from shared_models.objectives.forecasting import forecasting
from shared_models.objectives.simclr import simclr
from shared_models.objectives.simsiam import simsiam
from shared_models.optimizers.sgd import sgd
from shared_models.task import Task
from shared_models.tasks import load_task

DIGITS, WINDOWS = load_task("digits-cnn"), load_task("watch-cnn")
RNG = np.random.default_rng(0)


def some(task: Task, count: int = 4) -> Batch:
    x = torch.from_numpy(RNG.random((count, *task.input.shape)))
    return Batch(x, torch.zeros(count).long())


def shown(task: Task, batch: Batch, **changed: Tensor) -> Batch:
    """What the task's model is shown, with some of the drawn noise changed."""
    assert task.view is not None
    noise = task.view.draw(np.random.default_rng(0), batch)
    assert changed.keys() <= noise.keys()
    return task.view.show(batch, {**noise, **changed})


def nothing(views: int) -> Noise:
    """Noise of images that changes nothing."""
    same = torch.eye(2, 3).double().expand(views, 2, 3)
    return {"affine": same, "light": torch.ones(1).double(), "speckle": torch.zeros(1).double()}


@pytest.mark.parametrize("task", [simclr(DIGITS, 0.2), simsiam(DIGITS)], ids=["simclr", "simsiam"])
def test_the_views_of_an_example_stand_as_far_apart_as_there_are_examples(task: Task) -> None:
    batch = some(DIGITS)
    one, other = shown(task, batch, **nothing(8)).x.chunk(2)
    torch.testing.assert_close(one, batch.x)
    torch.testing.assert_close(other, batch.x)


def test_views_are_of_the_image_however_its_input_is_scaled() -> None:
    raw = RNG.integers(0, 256, (3, 1, 8, 8)).astype(np.uint8)
    specs = [
        InputSpec((1, 8, 8), mean=(m,), std=(s,)) for m, s in [(0, 255), (127.5, 127.5), (0, 1)]
    ]
    noise = augmentation_of(specs[0]).draw(np.random.default_rng(0), 3)
    seen = [
        augmentation_of(spec).apply(torch.from_numpy(spec.prepare(raw)).double(), noise)
        * spec.std[0]
        + spec.mean[0]
        for spec in specs
    ]
    for own in seen[1:]:
        torch.testing.assert_close(own, seen[0], rtol=1e-6, atol=1e-4)


def test_simsiam_draws_predictions_to_the_other_views_projections_and_never_these() -> None:
    outputs = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    outputs.requires_grad_()
    loss = simsiam(DIGITS).loss(outputs, torch.zeros(6))
    projected, predicted = outputs.detach().unbind(1)
    each = [cosine_similarity(predicted[i], projected[(i + 3) % 6], dim=0) for i in range(6)]
    torch.testing.assert_close(loss.detach(), -torch.stack(each).mean())
    (slope,) = torch.autograd.grad(loss, outputs)
    assert not slope[:, 0].any()
    assert slope[:, 1].any()


def test_a_forecaster_sees_the_past_alone() -> None:
    batch = some(WINDOWS)
    seen = shown(forecasting(WINDOWS, 10), batch)
    assert torch.equal(seen.y, batch.x[:, -10:])
    assert torch.equal(seen.x[:, 10:], batch.x[:, :-10])
    assert not seen.x[:, :10].any()


def test_a_share_of_the_values_is_taken_away_and_all_are_asked_for() -> None:
    batch = some(DIGITS, 50)
    seen = shown(denoising(DIGITS, 0.3), batch)
    gone = seen.x == 0
    assert 0.27 < float(gone.double().mean()) < 0.33
    assert torch.equal(seen.x[~gone], batch.x[~gone])
    assert torch.equal(seen.y, batch.x)


@pytest.mark.parametrize(("known", "mu"), [(0.0, 0.7), (0.5, 0.5), (2.0, 1.0)])
def test_how_far_a_client_goes_back_is_set_once_and_follows_the_distance(
    known: float, mu: float
) -> None:
    """`known` is the lambda that it had, times the distance that there is now; 0: it had none."""
    task = denoising(DIGITS, 0.3)
    server = in_dtype(task.build(0), torch.float64)
    own: Arrays = {name: array + 0.01 for name, array in server.items()}
    encoder = sum(array.numel() for name, array in server.items() if name.startswith("encoder."))
    apart = 0.01 * encoder**0.5
    state = {"own": own, "scale": {"value": torch.tensor(known / apart).double()}}
    ground = Ground(task, sgd(0.1), by_autograd, roles_of(task.model()))
    objective = fedema(ground, tau=0.7)
    begun = objective.begin(Broadcast(server, {}), state, some(DIGITS))
    _, kept, _ = objective.end(begun)
    for name, array in server.items():
        torch.testing.assert_close(kept["own"][name], array + 0.01 * mu)
    expected = (known or 0.7) / apart
    torch.testing.assert_close(kept["scale"]["value"], torch.tensor(expected).double())

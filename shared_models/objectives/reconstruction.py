"""What autoencoders share: the task's encoder, a decoder, and a comparison with the input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from shared_models.models.decoders import decoder_of
from shared_models.models.parts import MakeModel, features_of, is_recurrent, with_parts
from shared_models.task import Task


def autoencoder(task: Task) -> MakeModel:
    """Returns what makes the task's encoder with a decoder back to its input, as `decoder`."""
    features = features_of(task.make_model)
    recurrent = is_recurrent(task.make_model)

    def make_parts() -> dict[str, nn.Module]:
        return {"decoder": decoder_of(features, task.input.shape, recurrent=recurrent)}

    return with_parts(task.make_model, make_parts, _decoded)


def _decoded(model: Any, features: Tensor) -> Tensor:
    decoded: Tensor = model.decoder(features)
    return decoded

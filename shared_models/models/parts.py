"""A task's own model with other parts after its encoder, which keeps the names of its arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from shared_models.errors import InputError

MakeModel: TypeAlias = Callable[[], nn.Module]
Use: TypeAlias = Callable[[Any, Tensor], Tensor]
"""`use(model, features)`: what the model's outputs are, features being those of its encoder."""


def features_of(make_model: MakeModel) -> int:
    """Returns how many features the encoder gives; `InputError` for a model without linear head."""
    parts = dict(make_model().named_children())
    head = parts.get("head")
    if "encoder" not in parts or not isinstance(head, nn.Linear):
        found = ", ".join(f"{name} ({type(own).__name__})" for name, own in parts.items())
        raise InputError(
            "pretraining needs a model of an `encoder` and a linear `head`; its parts are: "
            f"{found or 'none'}"
        )
    return head.in_features


def with_parts(
    make_model: MakeModel, make_parts: Callable[[], Mapping[str, nn.Module]], use: Use
) -> MakeModel:
    """Returns what makes the model with these parts, by name, in place of its head."""

    def make() -> nn.Module:
        model: Any = make_model()
        kind: Any = type(model)

        # Of the model's own class, so that its encoder is called as it always is: some transpose
        # their input before, some take a recurrent layer's last state after.
        class WithParts(kind):  # type: ignore[misc]
            def forward(self, x: Tensor) -> Tensor:
                return use(self, super().forward(x))

        model.head = nn.Identity()
        for name, part in make_parts().items():
            model.add_module(name, part)
        model.__class__ = WithParts
        return model  # type: ignore[no-any-return]

    return make


def is_recurrent(make_model: MakeModel) -> bool:
    """Whether the encoder is a recurrent layer over time."""
    return isinstance(getattr(make_model(), "encoder", None), nn.LSTM | nn.GRU | nn.RNN)

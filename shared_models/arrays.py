"""Named arrays and what may be done with them.

A model's state is a mapping from name (`<part>.<rest>`) to tensor. Every array has a role:

* trainable: parameters; their delta is summed, checked and goes through the server optimiser.
* averaged: float running statistics (BatchNorm); weighted mean only, no optimiser, norm, noise.
* carried: integer buffers (counters), and what a stage freezes; the server's value stays and is
  never sent up.
* personal: never leaves the client, who keeps it from round to round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from shared_models.errors import CheckpointError, InputError
from shared_models.files import write_atomic

Arrays: TypeAlias = dict[str, Tensor]
Role: TypeAlias = Literal["trainable", "averaged", "carried", "personal"]


def roles_of(
    model: nn.Module, personal: Sequence[str] = (), frozen: Sequence[str] = ()
) -> dict[str, Role]:
    """Returns the role of every array in `model.state_dict()`.

    `personal` and `frozen` are prefixes of names; what is frozen is carried. Raises `InputError`
    when a prefix is nobody's, or nothing is left to share.
    """
    trainable = {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    require_prefixes("personal", personal, state)
    require_prefixes("freezes", frozen, state)
    roles: dict[str, Role] = {
        name: "trainable" if name in trainable else _role_of_buffer(tensor)
        for name, tensor in state.items()
    }
    roles |= {name: "personal" for name in state if name.startswith(tuple(personal))}
    roles |= {name: "carried" for name in state if name.startswith(tuple(frozen))}
    if "trainable" not in roles.values():
        key = "freezes" if frozen else "personal"
        raise InputError(f"{key}: nothing is left that clients could learn together")
    return roles


def require_prefixes(key: str, prefixes: Sequence[str], arrays: Mapping[str, Tensor]) -> None:
    """Raises `InputError` naming the config key unless every prefix is some array's."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in arrays):
            raise InputError(f"{key}: no array begins with {prefix!r}; there are {list(arrays)}")


def _role_of_buffer(tensor: Tensor) -> Role:
    return "averaged" if tensor.is_floating_point() else "carried"


def with_role(arrays: Mapping[str, Tensor], roles: Mapping[str, Role], role: Role) -> Arrays:
    """Returns the arrays of one role, in the model's order, so that sums over names keep theirs."""
    return {name: arrays[name] for name, own in roles.items() if own == role and name in arrays}


def subtract(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Arrays:
    """Returns `left - right`, name by name."""
    return {name: tensor - right[name] for name, tensor in left.items()}


def add(left: Mapping[str, Tensor], right: Mapping[str, Tensor], scale: float = 1.0) -> Arrays:
    """Returns `left + scale * right`, name by name, in the dtype of `left`."""
    return {
        name: torch.add(tensor, right[name].to(tensor.dtype), alpha=scale)
        for name, tensor in left.items()
    }


def scaled(arrays: Mapping[str, Tensor], factor: float) -> Arrays:
    """Returns `factor * arrays`."""
    return {name: tensor * factor for name, tensor in arrays.items()}


def zeros_like(arrays: Mapping[str, Tensor]) -> Arrays:
    """Returns a zero for each array, of its shape and dtype, where it is."""
    return {name: torch.zeros_like(tensor) for name, tensor in arrays.items()}


def cast(arrays: Mapping[str, Tensor], dtype: torch.dtype) -> Arrays:
    """Returns the arrays in another dtype."""
    return {name: tensor.to(dtype) for name, tensor in arrays.items()}


def in_dtype(arrays: Mapping[str, Tensor], dtype: torch.dtype) -> Arrays:
    """Returns the arrays with the floating ones in `dtype`; integers stay what they are."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in arrays.items()
    }


def to_device(arrays: Mapping[str, Tensor], device: torch.device) -> Arrays:
    """Returns the arrays on a device; those that are there already are not copied."""
    return {name: tensor.to(device) for name, tensor in arrays.items()}


def global_norm(arrays: Mapping[str, Tensor]) -> Tensor:
    """Returns the Euclidean norm over all arrays together, a scalar (0 when there are none)."""
    norms = [torch.linalg.vector_norm(tensor) for tensor in arrays.values()]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def size_bytes(arrays: Mapping[str, Tensor]) -> int:
    """Returns how many bytes the values take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in arrays.values())


def serialize(arrays: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Returns the arrays in safetensors format, from any device; equal arrays give equal bytes."""
    return save({name: tensor.cpu().contiguous() for name, tensor in arrays.items()}, metadata)


def digest(arrays: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of the serialized arrays: what "bit-equal" means here."""
    return hashlib.sha256(serialize(arrays)).hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Writes the arrays to `path` atomically, as safetensors without metadata."""
    write_atomic(path, serialize(arrays))


def load_arrays(path: Path) -> Arrays:
    """Reads a safetensors file; raises `CheckpointError` when it is missing or damaged."""
    try:
        # Copied out of the mapped file: sums in MKL's products depend on how memory is aligned.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except Exception as error:  # safetensors raises its own untyped errors
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None

"""Where the server folds and steps: in the host's memory, or on a GPU.

Partials are received, checked, sent and written in the host's memory. What goes to a GPU has passed
its checks: a client that sends too much must not be able to fill it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from server.evaluation import pick_device
from server.state import ServerState
from shared_models.arrays import Arrays, to_device
from shared_models.config import Config

HOST = torch.device("cpu")


def server_device(config: Config) -> torch.device:
    """Returns where the server folds and steps; `InputError` if it is not there."""
    return pick_device(config.server_device, "server_device")


def check_devices(config: Config) -> None:
    """Raises `InputError` when a device that the server is to use is not there."""
    server_device(config)
    pick_device(config.evaluate.device)


def placed(arrays: Mapping[str, Tensor], device: torch.device) -> Arrays:
    """Returns the arrays on a device; those that are there already are not copied.

    To a GPU they go through pinned memory, and nobody waits: what is asked of the GPU next does.
    """
    if device.type != "cuda":
        return to_device(arrays, device)
    return {name: _pinned(tensor).to(device, non_blocking=True) for name, tensor in arrays.items()}


def _pinned(tensor: Tensor) -> Tensor:
    # torch keeps the pinned copy until the transfer is done.
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def on_device(state: ServerState, device: torch.device) -> ServerState:
    """Returns the state with all of its arrays on a device."""
    return replace(
        state,
        params=placed(state.params, device),
        optimizer={slot: placed(own, device) for slot, own in state.optimizer.items()},
        extras={name: placed(own, device) for name, own in state.extras.items()},
    )


def on_host(state: ServerState) -> ServerState:
    """Returns the state with what clients are sent in the host's memory.

    The optimiser's part stays where it steps; a checkpoint fetches it, while the next round trains.
    """
    extras = {name: to_device(own, HOST) for name, own in state.extras.items()}
    return replace(state, params=to_device(state.params, HOST), extras=extras)

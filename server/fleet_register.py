"""The devices that a server knows: by which name, and which clients each may host.

`wildflower server` writes the file when it registers a device; a run reads it when it calls the
roll. So a device that was given an id can neither take another's nor keep a run from starting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared_models.errors import InputError, one_line
from shared_models.files import write_json
from shared_models.messages import Hello

REGISTER = "nodes.json"


@dataclass(frozen=True)
class Registered:
    """A device: its name, and the ids of the clients it may host; None for any."""

    name: str
    client_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Register:
    """All devices, by Flower's node ids."""

    nodes: Mapping[int, Registered] = field(default_factory=dict)

    def name_of(self, node: int) -> str | None:
        """Returns a device's name, None where it is not known: without TLS there are no names."""
        known = self.nodes.get(node)
        return None if known is None else known.name

    def objection(self, node: int, hello: Hello) -> str | None:
        """Returns why a node may not take part with what it says it hosts, or None.

        A node that could train anyone's clients has no data of its own to bring; and the ids that
        were given to one device are not another's.
        """
        if hello.shared:
            return "it hosts no clients of its own; start it by `wildflower client`"
        own = self.nodes.get(node)
        claimed = set(hello.client_ids)
        if own is not None and own.client_ids is not None:
            strange = claimed - set(own.client_ids)
            return f"it may not host client {min(strange)}" if strange else None
        for other in self.nodes.values():
            if taken := claimed & set(other.client_ids or ()):
                return f"client {min(taken)} belongs to {other.name}"
        return None


def write_register(folder: Path, register: Register) -> None:
    """Writes the register into a server's state folder."""
    told = {
        str(node): {"name": known.name, "client_ids": known.client_ids}
        for node, known in sorted(register.nodes.items())
    }
    write_json(folder / REGISTER, told)


def read_register(folder: Path) -> Register:
    """Reads the register of a state folder, empty where none was written yet."""
    path = folder / REGISTER
    try:
        told = json.loads(path.read_text())
        return Register({int(node): _registered(known) for node, known in told.items()})
    except FileNotFoundError:
        return Register()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged: {one_line(str(error))}; restart the server") from None


def _registered(known: Mapping[str, object]) -> Registered:
    ids = known["client_ids"]
    client_ids = tuple(int(k) for k in ids) if isinstance(ids, list) else None
    return Registered(str(known["name"]), client_ids)

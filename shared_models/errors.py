"""Every error that Wildflower raises on purpose.

    WildflowerError          it failed: what, where, what to do        exit code 1
    ├── InputError           what the user gave is wrong               exit code 2
    │   └── ConfigError      a config file or an override is wrong
    ├── DataError            a dataset cannot be had, or is damaged
    ├── UpdateError          a client's update or a partial is refused
    ├── RoundError           a round has no usable update
    ├── CheckpointError      a checkpoint cannot be read or written
    ├── ExportError          an artefact cannot be made, or failed its gate
    ├── EngineError          no worker can be had to train clients
    ├── ServerError          a server far away does not answer, or refuses
    └── Interrupted          the user stopped it                       exit code 130

A message is one line that names the file, key or client, what was expected and what came.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WildflowerError(Exception):
    """It failed, and the message says what, where and what to do."""

    exit_code = 1


class InputError(WildflowerError):
    """What the user gave is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """A config file or an override is wrong."""


class DataError(WildflowerError):
    """A dataset cannot be had, or is damaged."""


class UpdateError(WildflowerError):
    """A client's update or a partial is refused."""


class RoundError(WildflowerError):
    """A round has no usable update."""


class CheckpointError(WildflowerError):
    """A checkpoint cannot be read or written."""


class ExportError(WildflowerError):
    """An artefact cannot be made, or failed its gate."""


class EngineError(WildflowerError):
    """No worker can be had to train clients."""


class ServerError(WildflowerError):
    """A server far away does not answer, or refuses."""


class Interrupted(WildflowerError):
    """The user stopped it; the message says how to go on."""

    exit_code = 130


def one_line(text: str, limit: int = 300) -> str:
    r"""Returns text from elsewhere as one printable line of at most `limit` characters.

    >>> one_line("RuntimeError: first\nsecond\x1b[31m")
    'RuntimeError: first second [31m'
    """
    printable = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Returns a clause that names the nearest valid word, or all of them when none is near.

    >>> did_you_mean("ronds", ["rounds", "batch_size"])
    "did you mean 'rounds'?"
    >>> did_you_mean("xyz", ["iid", "shards"])
    'valid are: iid, shards'
    """
    names = sorted(valid)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"valid are: {', '.join(names)}"

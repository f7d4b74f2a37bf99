"""A user's own task: `module:attribute`, the module being one file.

Where a run is begun the file lies in the current folder; on a fleet's server it is in the bundle;
to a device's trainer its source is handed over.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from shared_models.errors import InputError, one_line

if TYPE_CHECKING:
    from shared_models.task import Task

_REFERENCE = re.compile(r"([A-Za-z_]\w*):([A-Za-z_]\w*)", re.ASCII)
_SOURCE = "__wildflower_source__"


def is_own(name: str) -> bool:
    """Whether a task's name is a reference to a user's file.

    >>> is_own("ours:TASK"), is_own("mnist-cnn")
    (True, False)
    """
    return _REFERENCE.fullmatch(name) is not None


def file_of(name: str) -> str:
    """Returns the name of the file that a reference is about."""
    return name.partition(":")[0] + ".py"


def load_own(name: str) -> Task:
    """Returns a user's task; raises `InputError` that names the file and what is wrong in it."""
    from shared_models.task import Task

    module, _, attribute = name.partition(":")
    if not hasattr(sys.modules.get(module), _SOURCE):
        path = next((path for path in _places(module) if path.is_file()), None)
        if path is None:
            raise InputError(
                f"task {name!r}: there is no {file_of(name)} in {Path.cwd()}: run this where it is"
            )
        adopt(name, path.read_text())
    try:
        task = getattr(sys.modules[module], attribute)
    except AttributeError:
        raise InputError(f"task {name!r}: {file_of(name)} has no {attribute!r}") from None
    if not isinstance(task, Task):
        raise InputError(f"task {name!r}: is of type {type(task).__name__}, not a Task")
    return task


def _places(module: str) -> tuple[Path, Path]:
    """Returns where the file may be: in a bundle beside our packages, or in the current folder."""
    file = f"{module}.py"
    return Path(__file__).parents[2] / file, Path(file).absolute()


def adopt(name: str, source: str) -> bool:
    """Makes a user's source the module of a reference; returns whether it is new.

    Raises `InputError` when it does not run, or is called like a module that is there.
    """
    module = name.partition(":")[0]
    known = sys.modules.get(module)
    if getattr(known, _SOURCE, None) == source:
        return False
    if _is_installed(module) if known is None else not hasattr(known, _SOURCE):
        raise InputError(f"task {name!r}: there is a module {module!r} already; rename the file")
    made = ModuleType(module)
    setattr(made, _SOURCE, source)
    sys.modules[module] = made  # before it runs: a dataclass in it looks itself up
    try:
        exec(compile(source, file_of(name), "exec"), made.__dict__)  # noqa: S102 - it is the task
    except (Exception, SystemExit) as error:  # it is somebody else's code
        del sys.modules[module]
        reason = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"task {name!r}: {file_of(name)} does not run: {reason}") from None
    return True


def _is_installed(module: str) -> bool:
    """Whether there is another module of this name; the file's folder may well be on the path."""
    spec = importlib.util.find_spec(module)
    return spec is not None and Path(spec.origin or "") not in _places(module)

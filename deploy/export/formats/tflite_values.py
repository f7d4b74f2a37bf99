"""Every tensor of a TFLite file for some input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from deploy.export.formats.matching import Opened, origins_of


def open_tflite(path: Path, x: NDArray[Any]) -> Opened:
    """Runs a file of batch 1 on examples `(n, *shape)`, one by one, and keeps all it computes."""
    interpreter = Interpreter(
        str(path),
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    details = interpreter.get_tensor_details()
    names = {int(own["index"]): str(own["name"]) for own in details}
    operators = [
        (str(own["op_name"]), _named(own["inputs"], names), _named(own["outputs"], names))
        for own in interpreter._get_ops_details()  # there is no public way
    ]
    (entry,) = (int(own["index"]) for own in interpreter.get_input_details())
    made = {entry, *(index for index, name in names.items() if _is_made(name, operators))}
    seen: dict[int, list[NDArray[Any]]] = {index: [] for index in made}
    for example in x:
        interpreter.set_tensor(entry, example[None].astype(interpreter.tensor(entry)().dtype))
        interpreter.invoke()
        for index, values in seen.items():
            values.append(interpreter.get_tensor(index))
    tensors = {names[index]: np.stack(values) for index, values in seen.items()}
    return Opened(tensors, origins_of(operators))


def _named(indices: Any, names: dict[int, str]) -> tuple[str, ...]:
    return tuple(names[int(index)] for index in indices if int(index) in names)


def _is_made(name: str, operators: list[tuple[str, tuple[str, ...], tuple[str, ...]]]) -> bool:
    return any(name in outputs for _, _, outputs in operators)

"""Every tensor of an ONNX file for some input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from deploy.export.formats.matching import Opened, origins_of


def open_onnx(path: Path, x: NDArray[Any]) -> Opened:
    """Runs a file on examples `(n, *shape)` and keeps all it computes."""
    model = onnx.load(str(path))
    graph = model.graph
    told = {own.name for own in graph.output}
    made = [name for node in graph.node for name in node.output if name and name not in told]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0].name
    names = [own.name for own in session.get_outputs()]
    values = session.run(names, {entry: x})
    tensors = {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
    operators = [(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node]
    return Opened({entry: x, **tensors}, origins_of(operators))

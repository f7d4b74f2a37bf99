"""TFLite files from scratch: a graph grows tensor by tensor, then becomes a flatbuffer.

For what no converter writes. Only the schema of `ai-edge-litert` and `flatbuffers` are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

ABSENT = -1  # an optional input that is not given
_IDENTIFIER = b"TFL3"
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
}


@dataclass(frozen=True)
class Operator:
    """An operator of the schema at a version; `settings` are the fields of its options."""

    name: str
    version: int = 1
    options: str = ""
    settings: tuple[tuple[str, int | bool], ...] = ()


class Graph:
    """A TFLite model of one subgraph; tensors are told apart by their numbers."""

    def __init__(self) -> None:
        self._buffers = [schema.BufferT()]  # the first one is empty by definition
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[tuple[str, int]] = []

    def activation(self, shape: Sequence[int], dtype: type = np.float32) -> int:
        """Adds a tensor that an operator, or the user, fills."""
        return self._add(shape, np.dtype(dtype))

    def variable(self, shape: Sequence[int]) -> int:
        """Adds a tensor that keeps its value from one invocation to the next; it begins as 0."""
        made = self._add(shape, np.dtype(np.float32))
        self._tensors[made].isVariable = True
        return made

    def constant(self, values: NDArray[Any], scale: float | None = None) -> int:
        """Adds a tensor with values; with a scale they are steps of it."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self._buffers.append(buffer)
        made = self._add(values.shape, values.dtype)
        self._tensors[made].buffer = len(self._buffers) - 1
        if scale is not None:
            steps = schema.QuantizationParametersT()
            steps.scale, steps.zeroPoint = [scale], [0]
            self._tensors[made].quantization = steps
        return made

    def apply(self, operator: Operator, inputs: Sequence[int], output: int) -> int:
        """Adds an operator that fills `output`, and returns that."""
        made = schema.OperatorT()
        made.opcodeIndex = self._code(operator.name, operator.version)
        made.inputs, made.outputs = list(inputs), [output]
        if operator.options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, operator.options)
            made.builtinOptions = getattr(schema, f"{operator.options}T")()
            for key, value in operator.settings:
                setattr(made.builtinOptions, key, value)
        self._operators.append(made)
        return output

    def to_bytes(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """Returns the file; ends are found by name in its only signature."""
        for name, tensor in {**inputs, **outputs}.items():
            self._tensors[tensor].name = name.encode()
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = self._tensors, self._operators
        subgraph.inputs, subgraph.outputs = list(inputs.values()), list(outputs.values())
        model = schema.ModelT()
        model.version = 3
        model.subgraphs, model.buffers = [subgraph], self._buffers
        model.operatorCodes = [_operator_code(name, version) for name, version in self._codes]
        model.signatureDefs = [_signature(inputs, outputs)]
        return pack(model)

    def _add(self, shape: Sequence[int], dtype: np.dtype[Any]) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), _TYPES[dtype], 0
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _code(self, name: str, version: int) -> int:
        if (name, version) not in self._codes:
            self._codes.append((name, version))
        return self._codes.index((name, version))


def _operator_code(name: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # old runtimes read this one
    code.version = version
    return code


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.inputs, signature.outputs = _ends(inputs), _ends(outputs)
    return signature


def _ends(named: Mapping[str, int]) -> list[Any]:
    ends = []
    for name, tensor in named.items():
        end = schema.TensorMapT()
        end.name, end.tensorIndex = name.encode(), tensor
        ends.append(end)
    return ends


class _Builder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers is untyped
    """Begins every tensor's values at a multiple of 16 bytes, as the schema demands.

    Python's code for the schema leaves that out; a device may read such values with instructions
    that cannot do without.
    """

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802 - its name there
        """Writes an array."""
        self.Prep(16, x.nbytes)
        made: int = super().CreateNumpyVector(x)
        return made


def pack(model: Any) -> bytes:
    """Returns a model of the schema as the bytes of a file."""
    builder = _Builder(1 << 16)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def unpack(content: bytes) -> Any:
    """Returns the model that a file holds.

    Constants that lie behind the flatbuffer, where the quantizer puts large ones, come into it.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content)))
    for buffer in model.buffers:
        if buffer.offset > 1:  # 1 is said of a buffer that is empty
            behind = content[buffer.offset : buffer.offset + buffer.size]
            buffer.data = np.frombuffer(behind, np.uint8)
            buffer.offset = buffer.size = 0
    return model

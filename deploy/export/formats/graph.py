"""TFLite files from scratch: a graph grows tensor by tensor, then becomes a flatbuffer.

For what no converter writes. Only the schema of `ai-edge-litert` and `flatbuffers` are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
    np.dtype(np.bool_): schema.TensorType.BOOL,
}

Form: TypeAlias = tuple[tuple[int, ...], "np.dtype[Any]"]
"""A tensor's shape and dtype."""


@dataclass(frozen=True)
class Operator:
    """An operator of the schema at a version; `settings` are the fields of its options."""

    name: str
    version: int = 1
    options: str = ""
    settings: tuple[tuple[str, int | bool], ...] = ()


@dataclass(frozen=True)
class _Shared:
    """What all graphs of a file share."""

    # The first buffer is empty by definition.
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    places: dict[bytes, int] = field(default_factory=dict)
    codes: list[tuple[str, int]] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)

    def buffer(self, content: bytes) -> int:
        """Returns the number of a buffer with this content: equal constants share one."""
        if content not in self.places:
            made = schema.BufferT()
            made.data = np.frombuffer(content, np.uint8)
            self.places[content] = len(self.buffers)
            self.buffers.append(made)
        return self.places[content]


class Graph:
    """A graph of a TFLite model; its tensors are told apart by their numbers.

    A model begins in its first graph. Those `beside` it are run by its operators.
    """

    def __init__(self, beside: Graph | None = None) -> None:
        self._shared: _Shared = _Shared() if beside is None else beside._shared
        self.number = len(self._shared.graphs)
        self._shared.graphs.append(self)
        self._forms: list[Form] = []
        self._made = schema.SubGraphT()
        self._made.tensors, self._made.operators = [], []

    def activation(self, shape: Sequence[int], dtype: Any = np.float32) -> int:
        """Adds a tensor that an operator, or the user, fills."""
        tensor = schema.TensorT()
        form = tuple(shape), np.dtype(dtype)
        tensor.shape, tensor.type, tensor.buffer = _whole(shape), _TYPES[form[1]], 0
        self._forms.append(form)
        self._made.tensors.append(tensor)
        return len(self._forms) - 1

    def variable(self, shape: Sequence[int]) -> int:
        """Adds a tensor that keeps its value from one invocation to the next; it begins as 0."""
        made = self.activation(shape)
        self._made.tensors[made].isVariable = True
        return made

    def constant(self, values: NDArray[Any], scale: float | None = None) -> int:
        """Adds a tensor with values; with a scale they are steps of it."""
        made = self.activation(values.shape, values.dtype)
        self._made.tensors[made].buffer = self._shared.buffer(values.tobytes())
        if scale is not None:
            steps = schema.QuantizationParametersT()
            steps.scale, steps.zeroPoint = np.array([scale], np.float32), np.array([0], np.int64)
            self._made.tensors[made].quantization = steps
        return made

    def form(self, tensor: int) -> Form:
        """Returns a tensor's shape and dtype."""
        return self._forms[tensor]

    def apply(self, operator: Operator, inputs: Sequence[int], output: int) -> int:
        """Adds an operator that fills `output`, and returns that."""
        self.apply_many(operator, inputs, [output])
        return output

    def apply_many(self, operator: Operator, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Adds an operator that fills several tensors."""
        made = schema.OperatorT()
        made.opcodeIndex = self._code(operator.name, operator.version)
        made.inputs, made.outputs = _whole(inputs), _whole(outputs)
        if operator.options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, operator.options)
            made.builtinOptions = getattr(schema, f"{operator.options}T")()
            for key, value in operator.settings:
                setattr(made.builtinOptions, key, value)
        self._made.operators.append(made)

    def end(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Says what the graph takes and gives."""
        self._made.inputs, self._made.outputs = _whole(inputs), _whole(outputs)

    def to_bytes(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """Returns the file, if this is its first graph; ends have names in its only signature."""
        for name, tensor in {**inputs, **outputs}.items():
            self._made.tensors[tensor].name = name.encode()
        self.end([*inputs.values()], [*outputs.values()])
        model, shared = schema.ModelT(), self._shared
        model.version = 3
        model.subgraphs, model.buffers = [own._made for own in shared.graphs], shared.buffers
        model.operatorCodes = [_operator_code(name, version) for name, version in shared.codes]
        model.signatureDefs = [_signature(inputs, outputs)]
        return pack(model)

    def _code(self, name: str, version: int) -> int:
        codes = self._shared.codes
        if (name, version) not in codes:
            codes.append((name, version))
        return codes.index((name, version))


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


def _whole(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


class _Builder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers is untyped
    """Begins every tensor's values at a multiple of 16 bytes, and writes equal arrays once.

    Python's code for the schema does neither. The schema demands the first; a device may read such
    values with instructions that cannot do without.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._known: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802 - its name there
        """Writes an array, or points to the same one before."""
        key = x.dtype.str, x.tobytes()
        if key not in self._known:
            if x.dtype == np.uint8:
                self.Prep(16, x.nbytes)
            self._known[key] = super().CreateNumpyVector(x)
        return self._known[key]


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

"""What a TFLite file needs, and no more: converters give each tensor the path of its layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.export.formats.graph import pack, unpack


def slim(path: Path, *, named: bool = False) -> None:
    """Takes out of a file what no runtime reads; it computes what it did.

    What goes in and comes out keeps its name, equal constants are kept once. `named`: other tensors
    have a short name, without which AI Edge Quantizer takes no file.
    """
    model = unpack(path.read_bytes())
    _merge_constants(model)
    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for number, tensor in enumerate(graph.tensors):
            if number not in ends:
                tensor.name = f"{number:x}".encode() if named else None
            tensor.quantization = _steps(tensor.quantization)
    path.write_bytes(pack(model))


def _steps(quantization: Any) -> Any:
    """Returns how a tensor is quantized, nothing if it is not."""
    if quantization is None or quantization.scale is None:
        return None
    quantization.min = quantization.max = None  # what the calibration saw
    return quantization


def _merge_constants(model: Any) -> None:
    """Leaves one buffer of those with equal content, and none that nobody reads."""
    kept, places = [model.buffers[0]], {}

    def place_of(number: int) -> int:
        if model.buffers[number].data is None:  # no constant
            return 0
        content = bytes(model.buffers[number].data)
        if content not in places:
            places[content] = len(kept)
            kept.append(model.buffers[number])
        return places[content]

    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = place_of(tensor.buffer)
    for entry in model.metadata or ():
        entry.buffer = place_of(entry.buffer)
    model.buffers = kept

"""What an ONNX file needs, and no more: converters leave stack traces, shapes and long names."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper


def slim(path: Path) -> None:
    """Takes out of a file what no runtime reads; it computes what it did.

    One with graphs inside of operators, which may use any name outside, is left as it is.
    """
    model = onnx.load(str(path))
    graph = model.graph
    if any(own.HasField("g") or own.graphs for node in graph.node for own in node.attribute):
        return
    _rename(graph, _merge_constants(graph))
    for node in graph.node:
        for what in ("name", "doc_string", "metadata_props"):
            node.ClearField(what)
    graph.ClearField("value_info")
    for told in (graph, model):
        told.ClearField("metadata_props")
        told.ClearField("doc_string")
    domains = {"", *(node.domain for node in graph.node)}
    used = [own for own in model.opset_import if own.domain in domains]
    model.ClearField("opset_import")
    model.opset_import.extend(used)
    onnx.save(model, str(path))


def _rename(graph: onnx.GraphProto, merged: dict[str, str]) -> None:
    """Gives values short names; inputs and outputs keep theirs."""
    names: dict[str, str] = {"": ""}
    names |= {own.name: own.name for own in (*graph.input, *graph.output)}

    def short(name: str) -> str:
        return names.setdefault(merged.get(name, name), f"{len(names):x}")

    for constant in graph.initializer:
        constant.name = short(constant.name)
    for node in graph.node:
        node.input[:], node.output[:] = map(short, node.input), map(short, node.output)


def _merge_constants(graph: onnx.GraphProto) -> dict[str, str]:
    """Leaves one of equal constants; returns whose name each that went takes."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    merged = {}
    for constant in list(graph.initializer):
        content = numpy_helper.to_array(constant).tobytes()
        name = first.setdefault((constant.data_type, tuple(constant.dims), content), constant.name)
        if name != constant.name:
            merged[constant.name] = name
            graph.initializer.remove(constant)
    return merged

"""TFLite that takes one time step and keeps its state: for sensors that never stop.

After as many steps as a sequence has, its logits are those of the sequence's file;
`reset_all_variables` begins a new sequence.
"""

from __future__ import annotations

from pathlib import Path

from deploy.export.formats.fused import write_step
from deploy.export.formats.layers import Store, as_float32, as_int8
from deploy.export.formats.recurrent import recognise
from deploy.export.formats.source import Made, Source


def write_fp32(source: Source, path: Path) -> Made:
    """Writes the weights as they are."""
    return _write(source, as_float32, path, "none")


def write_dynamic(source: Source, path: Path) -> Made:
    """Writes int8 weights; the state stays float32."""
    return _write(source, as_int8, path, "int8 weights")


def _write(source: Source, store: Store, path: Path, quantization: str) -> Made:
    path.write_bytes(write_step(recognise(source.model), source.shape, store))
    return Made(quantization, "one time step an invocation; its state stays until it is reset")

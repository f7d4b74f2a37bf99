"""TFLite that takes one time step and keeps its state: for sensors that never stop.

After as many steps as a sequence has, its logits are those of the sequence's file;
`reset_all_variables` begins a new sequence.
"""

from __future__ import annotations

from pathlib import Path

from deploy.export.formats.fused import Store, as_float32, as_int8, write_fused
from deploy.export.formats.recurrent import recognise
from deploy.export.formats.source import Made, Source


def write_fp32(source: Source, path: Path) -> Made:
    """Writes the weights as they are."""
    return _write(source, as_float32, path, "none")


def write_dynamic(source: Source, path: Path) -> Made:
    """Writes int8 weights; the state stays float32."""
    return _write(source, as_int8, path, "int8 weights")


def _write(source: Source, store: Store, path: Path, quantization: str) -> Made:
    step = (1, *source.shape[1:])
    path.write_bytes(write_fused(recognise(source.model), step, store))
    return Made(quantization, "one time step an invocation; its state stays until it is reset")

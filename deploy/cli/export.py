"""`wildflower export` and `wildflower verify`: files for devices, measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.output import AsJson, print_artefacts, print_json
from shared_models.config import ExportStage, parse_export


def export(
    run: Path,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="onnx, tflite or tflite-stream; may be repeated."),
    ] = None,
    quantize: Annotated[
        list[str] | None,
        typer.Option(help="auto, none, fp16, dynamic, int8 or int8-float; may be repeated."),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="The gate: how much accuracy a file may lose.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a run's model, run every file on the test data and compare it with torch.

    RUN is a finished run folder.

    Example: wildflower export runs/mnist-cnn-1 --format tflite --quantize int8
    """
    from deploy.simulate import export_stage
    from server.run_folder import RunFolder

    folder = RunFolder(run)
    base = folder.config().export_stage or ExportStage()
    asked: dict[str, Any] = {
        "formats": formats,
        "quantize": quantize,
        "max_accuracy_drop": max_accuracy_drop,
    }
    stage = parse_export(base, {key: value for key, value in asked.items() if value is not None})
    artefacts = export_stage(folder, stage, lambda _: None)
    if as_json:
        print_json([asdict(artefact) for artefact in artefacts])
    else:
        print_artefacts([asdict(artefact) for artefact in artefacts])
        print(f"in {folder.export}")


def verify(
    file: Path,
    as_json: AsJson = False,
) -> None:
    """Measure an exported file again, against the reference that lies beside it.

    FILE is an .onnx or .tflite file in a run's export folder. Needs its runtime only, no torch.

    Example: wildflower verify runs/mnist-cnn-1/export/model-int8.tflite
    """
    from deploy.edge.verify import verify as measure_again

    artefact = measure_again(file)
    if as_json:
        print_json(asdict(artefact))
    else:
        print_artefacts([asdict(artefact)])
        print(f"{file}: verified")

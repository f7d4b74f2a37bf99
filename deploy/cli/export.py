"""`wildflower export` and `wildflower verify`: files for devices, measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.output import AsJson, print_artefacts, print_json
from shared_models.config import ExportStage, parse_export
from shared_models.errors import InputError


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
    max_score_drop: Annotated[
        float | None, typer.Option(help="The gate: how much of its score a file may lose.")
    ] = None,
    bundle: Annotated[
        bool, typer.Option(help="Make an archive of each file that a device can use as it is.")
    ] = False,
    sign_key: Annotated[
        Path | None, typer.Option(help="Sign the bundles: a private Ed25519 key, PEM.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a run's model, run every file on the test data and compare it with torch.

    RUN is a finished run folder.

    Example: wildflower export runs/mnist-cnn-1 --format tflite --quantize int8
    """
    from deploy.edge.bundle import check_key, write_bundle
    from deploy.simulate import export_stage
    from server.run_folder import RunFolder

    if sign_key and not bundle:
        raise InputError("--sign-key signs bundles: add --bundle")
    check_key(sign_key)
    folder = RunFolder(run)
    base = folder.config().export_stage or ExportStage()
    asked: dict[str, Any] = {
        "formats": formats,
        "quantize": quantize,
        "max_score_drop": max_score_drop,
    }
    stage = parse_export(base, {key: value for key, value in asked.items() if value is not None})
    artefacts = export_stage(folder, stage, lambda _: None)
    bundles = [write_bundle(folder.export / one.file, sign_key) for one in artefacts if bundle]
    if as_json:
        print_json([asdict(artefact) for artefact in artefacts])
    else:
        print_artefacts([asdict(artefact) for artefact in artefacts])
        print(f"in {folder.export}")
        for path in bundles:
            print(f"bundle: {path.name}, {path.stat().st_size / 1000:.0f} KB")


def verify(
    file: Path,
    public_key: Annotated[
        Path | None, typer.Option(help="Who must have signed the bundle: an Ed25519 key, PEM.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure an exported file again, against the reference that lies beside it.

    FILE is an .onnx or .tflite file in a run's export folder, or a bundle (.zip). It is run in each
    runtime for it that this machine has. Needs no torch.

    Example: wildflower verify runs/mnist-cnn-1/export/model-int8.tflite
    """
    from deploy.edge.bundle import is_bundle
    from deploy.edge.verify import verify as measure_again
    from deploy.edge.verify import verify_bundle

    if not is_bundle(file):
        if public_key:
            raise InputError(f"{file}: --public-key is for bundles, which are signed")
        artefact, seal = measure_again(file), ""
    else:
        artefact, signed = verify_bundle(file, public_key)
        seal = _seal(signed, public_key)
    if as_json:
        print_json({**asdict(artefact), **({"signature": seal} if seal else {})})
    else:
        print_artefacts([asdict(artefact)])
        print(f"{file}: verified" + (f", {seal}" if seal else ""))


def _seal(signed: bool, public_key: Path | None) -> str:
    if public_key:
        return f"signed with the key of {public_key}"
    return "signed, but by whom was not checked: name a --public-key" if signed else "not signed"

"""`wildflower simulate`: a whole run on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.app import simulate_app
from deploy.cli.output import AsJson
from deploy.cli.summary import print_summary
from deploy.cli.watching import (
    LOOPBACK,
    LogFormat,
    LogFormatOption,
    MetricsBind,
    MetricsPort,
    Shown,
    Track,
    metrics_address,
    observer,
    watching,
)
from shared_models.config import Config, read_config
from shared_models.errors import InputError, Interrupted

if TYPE_CHECKING:
    from server.run_folder import RunFolder


def simulate(
    config: Annotated[Path | None, typer.Argument()] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; default: runs/<config name>-<n>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key=value, e.g. stages.train.rounds=3; may be repeated."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="A folder with data files that you already have.")
    ] = None,
    app: Annotated[
        Path | None, typer.Option(help="The folder of a Flower app to run instead of a config.")
    ] = None,
    num_supernodes: Annotated[
        int | None, typer.Option(help="How many nodes to simulate for --app.")
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(help="How blocks are trained: a trainer, or the manifest.json of a run."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="inline or ray; the result is the same.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many workers for ray or --app; default: one a core.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray cluster to use; implies ray.")
    ] = None,
    track: Track = None,
    metrics_port: MetricsPort = None,
    metrics_bind: MetricsBind = LOOPBACK,
    log_format: LogFormatOption = LogFormat.text,
    as_json: AsJson = False,
) -> None:
    """Run all stages of a config on this machine and leave a run folder.

    CONFIG is a TOML file, or a run folder, which stands for its config.toml.

    Example: wildflower simulate examples/mnist-cnn.toml

    To go on after an interruption: wildflower simulate runs/mnist-cnn-1 --resume

    What a fleet trained, again and to the same bytes: wildflower simulate --plan RUN/manifest.json

    Any Flower app, unmodified: wildflower simulate --app DIR --num-supernodes 100
    """
    if app is not None:
        others: dict[str, object] = {"CONFIG": config, "--out": out, "--resume": resume}
        others |= {"--data-root": data_root, "--plan": plan}
        others |= {"--engine": engine, "--ray-address": ray_address}
        others |= {"--track": track, "--metrics-port": metrics_port}
        others |= {"--log-format": log_format is LogFormat.json}
        simulate_app(app, num_supernodes, workers, settings or (), others, as_json)
        return
    from deploy.planning import config_beside, plan_overrides
    from deploy.report.closing import close_again
    from shared_models.init_weights import settled_init

    config = config or config_beside(plan)
    if config is None or num_supernodes is not None:
        raise InputError("expected a CONFIG, or --app DIR and --num-supernodes N")
    overrides = [*(settings or []), *(plan_overrides(plan) if plan else [])]
    overrides += _machine(engine, workers, ray_address, data_root)
    resolved = settled_init(read_config(config, overrides))
    path = _done_before(config, resolved, out) if resume else None
    if path is not None:
        close_again(path)
    else:
        metrics = metrics_address(metrics_port, metrics_bind)
        shown = Shown(watching(track, metrics), log_format, as_json)
        path = _run(config, resolved, _Choice(out, plan, resume), shown)
    print_summary(path, as_json)


def _machine(
    engine: str | None, workers: int | None, ray_address: str | None, data_root: Path | None
) -> list[str]:
    """Returns the options about the machine as overrides of the config."""
    if engine == "inline" and (workers or ray_address):
        raise InputError("--engine inline: contradicts --workers and --ray-address")
    if engine is None and (workers or ray_address):
        engine = "ray"
    root = None if data_root is None else str(data_root)
    given = {"engine": engine, "workers": workers, "ray_address": ray_address, "data.root": root}
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def _run_path(config: Path, resolved: Config, out: Path | None, resume: bool) -> Path:
    from server.run_folder import new_run_folder

    if out is not None:
        if resume and config.is_dir() and out.absolute() != config.absolute():
            raise InputError(f"--out {out}: contradicts --resume of the run in {config}")
        return out
    if not resume:
        return new_run_folder(Path("runs"), resolved.name)
    folder = config if config.is_dir() else config.parent
    if config.is_dir() or (folder / "metrics.jsonl").exists():
        return folder
    raise InputError(
        "--resume needs to know which run: `wildflower simulate RUN_FOLDER --resume`, or add --out"
    )


def _done_before(config: Path, resolved: Config, out: Path | None) -> Path | None:
    """Returns the run folder that is to be resumed, if nothing is left to do there."""
    from deploy.planning import adopt_plan
    from server.run_folder import RunFolder

    folder = RunFolder(_run_path(config, resolved, out, resume=True))
    return folder.path if _is_done(folder, adopt_plan(resolved, folder)) else None


@dataclass(frozen=True)
class _Choice:
    """Where a run is to be, what its plan is taken from, and whether it goes on."""

    out: Path | None
    plan: str | None
    resume: bool


def _run(config: Path, resolved: Config, choice: _Choice, shown: Shown) -> Path:
    from deploy.report.closing import reported
    from deploy.simulate import check, open_grid
    from deploy.simulate import simulate as run_stages
    from deploy.watching.sinks import AboutRun
    from deploy.watching.watch import opened
    from server.run_folder import RunFolder
    from shared_models.config import to_toml

    out, resume = choice.out, choice.resume
    with opened(shown.watching) as watch, open_grid(resolved) as grid:
        near = _run_path(config, resolved, out, resume=True) if resume else out or Path("runs")
        check(resolved, near, choice.plan)
        path = _run_path(config, resolved, out, resume)
        if resume:
            resolved = _same_run(resolved, RunFolder(path))
        try:
            about = AboutRun(path.name, path, to_toml(resolved))
            line = f"{resolved.name}: run folder {path}"
            with reported(path), observer(watch, about, shown, line) as observe:
                run_stages(resolved, path, observe, grid, resume=resume)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted; finished rounds are safe: "
                f"`wildflower simulate {path} --resume` goes on"
            ) from None
    return path


def _same_run(resolved: Config, folder: RunFolder) -> Config:
    """Returns the config with the plan of the run in `folder`; raises `InputError` for another.

    Before anything is written: why that run failed is its own.
    """
    from deploy.planning import adopt_plan

    resolved = adopt_plan(resolved, folder)
    if not folder.is_new():
        folder.require_same(resolved)
    return resolved


def _is_done(folder: RunFolder, config: Config) -> bool:
    """Whether the folder holds this very run, finished and with its weights as they were."""
    from server.manifest import config_digest
    from shared_models.files import sha256_of

    summary = folder.summary()
    if summary.get("status") != "done" or not folder.model_file.exists():
        return False
    folder.require_same(config)
    if folder.manifest()["config_sha256"] != config_digest(config):
        raise InputError(
            f"{folder.config_file}: was edited after the run; run it without --resume to start anew"
        )
    return bool(summary.get("model_sha256") == sha256_of(folder.model_file))

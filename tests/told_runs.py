"""Run folders that nobody ran: what a report reads, as a run writes it, in milliseconds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from deploy.edge.artefact import Artefact, Gate
from deploy.edge.measure import Latency, Measured, Parity
from deploy.report.partition import PARTITION, Skew, to_json
from server.records import Failure, Injected, RoundRecord, Seconds
from server.sample_records import SAMPLES, Samples, Shown, picture
from shared_models.inputs import InputSpec

CONFIG = """
name = "told"
task = "digits-cnn"
seed = 3

[data]
partition = "dirichlet"
clients = 20

[evaluate]
clients_fraction = 1.0

[[stages]]
name = "train"
kind = "train"
rounds = 5
clients_per_round = 10
local_learning_rate = 0.1

[[stages]]
name = "tune"
kind = "finetune"
rounds = 3
clients_per_round = 10
local_learning_rate = 0.05

[[stages]]
name = "export"
kind = "export"
"""
LABELS = ("cat", "dog", "owl")
RECORD = RoundRecord(
    stage="train",
    round=1,
    clients_selected=10,
    clients_aggregated=8,
    clients_failed=1,
    failures=(
        Failure(7, "refused", "delta.head.weight: holds NaN or infinite values"),
        Failure(4, "late", "an answer after 60 s, the deadline of the round is 30 s"),
    ),
    train_loss=1.5,
    eval={"loss": 1.4, "accuracy": 0.5},
    seconds=Seconds(2.0, 1.2, 0.1, 0.6, 0.05),
    bytes_down=20_000,
    bytes_up=80_000,
    rss_mb=400.0,
    time=1.7e9,
    clients_eval={
        "clients": 20.0,
        "accuracy": 0.52,
        "accuracy_p10": 0.2,
        "accuracy_p50": 0.5,
        "accuracy_p90": 0.8,
        "accuracy_worst10": 0.125,
        "accuracy_variance": 0.03,
        "failed": 0.0,
    },
    clients_late=1,
    waited_s=30.0,
    injected=(Injected(7, "nan", "refused"),),
)
PARITY = Parity(300, "accuracy", 0.9, 0.9, 0.99, 0.1)
FILE = Artefact(
    file="model-fp32.onnx",
    format="onnx",
    quantization="none",
    notes="",
    stream=False,
    size_bytes=40_000,
    sha256="0" * 64,
    task="digits-cnn",
    answer="classes",
    labels=LABELS,
    input=InputSpec(shape=(1, 8, 8)),
    run="told",
    round=3,
    weights_sha256="1" * 64,
    reference_sha256="2" * 64,
    measured=(Measured("onnxruntime", "1.32.0", PARITY, Latency(0.01, 0.02, 20)),),
    not_tried=(),
    gate=Gate(0.01, 0.95),
    passed=True,
)
SMALL = replace(FILE, file="model-int8.onnx", quantization="int8", size_bytes=12_000)
BROKEN = replace(
    FILE,
    file="model-int8.tflite",
    size_bytes=9_000,
    measured=(replace(FILE.measured[0], runtime="litert", parity=replace(PARITY, score=0.7)),),
    passed=False,
)
SAMPLE = Samples(
    examples=30,
    answer="classes",
    labels=LABELS,
    confusion=((9, 1, 0), (0, 10, 0), (2, 5, 3)),
    shown=(Shown(picture=picture(np.eye(8, dtype=np.uint8) * 255), truth="cat", said="cat"),),
    wrong=(
        Shown(series=((0.0, 1.0, 0.5),), truth="owl", said="dog", sure=0.9),
        Shown(text="to be or n", truth="o", said="e", sure=0.4),
    ),
)
SKEW = Skew(
    "dirichlet", 20, (10.0, 30.0, 90.0), "examples", LABELS, (0, 7), (), ((9, 1, 0), (0, 5, 5))
)


def records(rounds: int = 8) -> list[RoundRecord]:
    """Returns the rounds of both stages, each better than the one before."""
    made = []
    for place in range(rounds):
        stage, number = ("train", place + 1) if place < 5 else ("tune", place - 4)
        told = {"loss": 1.4 - place / 10, "accuracy": 0.5 + place / 20}
        made.append(replace(RECORD, stage=stage, round=number, eval=told))
    return made


def write_run(path: Path, rounds: int = 8, config: str = CONFIG) -> Path:
    """Writes the folder of a run so far; of all rounds, also what is there at the end."""
    (path / "client_metrics").mkdir(parents=True)
    (path / "config.toml").write_text(config)
    told = records(rounds)
    (path / "metrics.jsonl").write_text("".join(record.to_json() + "\n" for record in told))
    (path / "manifest.json").write_text(json.dumps(manifest()))
    (path / PARTITION).write_bytes(to_json(SKEW))
    for record in told[-1:]:
        name = f"client_metrics/{record.stage}-{record.round:06d}.json"
        (path / name).write_text(json.dumps(columns()))
    if rounds == 8:
        (path / SAMPLES).write_text(json.dumps(asdict(SAMPLE)))
        (path / "summary.json").write_text(json.dumps(summary()))
    return path


def manifest() -> dict[str, object]:
    """Returns what a manifest says, in short."""
    model = {"dataset": "digits", "metrics": ["accuracy", "loss"], "costs": ["loss"]}
    return {
        "versions": {"torch": "2.13.0", "wildflower": "0.1.0"},
        "machine": {"cores": 2, "memory_bytes": 1 << 34},
        "engine": "inline",
        "plan": {"trainer": "loop", "dtype": "float32"},
        "population": {"clients": 20, "examples": 1438},
        "model": {**model, "parameters": 8714, "parts": {"encoder": 8000, "head": 714}},
    }


def columns() -> dict[str, object]:
    """Returns what 20 clients measured; the last one could not."""
    values = [0.05 * k for k in range(19)]
    return {
        "client_id": list(range(20)),
        "examples": [10 + k for k in range(20)],
        "status": ["ok"] * 19 + ["failed"],
        "reason": [""] * 19 + ["RuntimeError: the sensor is offline"],
        "accuracy": [*values, None],
        "loss": [*(1 - value for value in values), None],
    }


def summary() -> dict[str, object]:
    """Returns what a summary says at the end, of two good files and one that failed its gate."""
    return {
        "status": "done",
        "total_s": 75.0,
        "startup_s": 3.0,
        "peak_rss_mb": 900.0,
        "params": 8714,
        "artefacts": [asdict(file) for file in (FILE, SMALL, BROKEN)],
    }

"""Every metric that there is: its name, its labels, what it means.

docs/metrics.md, the dashboard and the alert rules in `k8s/` are held to this list by tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge"]


@dataclass(frozen=True)
class Metric:
    """One metric: a counter only grows, a gauge is what it is now."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


_STAGE = ("run", "stage")

BUILD_INFO = Metric(
    "wildflower_build_info", "gauge", ("version", "python"), "Always 1; the labels say what runs."
)

ROUNDS = Metric("wildflower_rounds_total", "counter", _STAGE, "Rounds that are over.")
ATTEMPTS = Metric(
    "wildflower_attempts_total", "counter", _STAGE, "Cohorts asked; a missed quorum asks another."
)
ROUND = Metric("wildflower_round", "gauge", _STAGE, "The last round that is over.")
STAGE_ROUNDS = Metric("wildflower_stage_rounds", "gauge", _STAGE, "How many rounds are planned.")
STAGE_CLIENTS = Metric("wildflower_stage_clients", "gauge", _STAGE, "Clients of the population.")
CLIENTS = Metric(
    "wildflower_clients_total",
    "counter",
    (*_STAGE, "outcome"),
    "Clients asked, by outcome: aggregated, failed, refused, late, discarded.",
)
BLOCKS = Metric("wildflower_blocks_total", "counter", _STAGE, "Blocks of clients that came back.")
QUEUE = Metric(
    "wildflower_queue_clients", "gauge", _STAGE, "Clients of this round that are waited for."
)
ROUND_SECONDS = Metric(
    "wildflower_round_seconds_total", "counter", _STAGE, "Seconds that rounds took."
)
PHASE_SECONDS = Metric(
    "wildflower_phase_seconds_total",
    "counter",
    (*_STAGE, "phase"),
    "Seconds by phase: train, aggregate, evaluate, checkpoint; the last two beside the next round.",
)
BYTES = Metric(
    "wildflower_transferred_bytes_total",
    "counter",
    (*_STAGE, "direction"),
    "Bytes of arrays: down to clients, up to the server.",
)
TRAIN_LOSS = Metric(
    "wildflower_train_loss", "gauge", _STAGE, "Loss of the last round, mean over its examples."
)
EVALUATION = Metric(
    "wildflower_evaluation",
    "gauge",
    (*_STAGE, "source", "metric"),
    "The last evaluation: source is server or clients, metric loss, accuracy or another.",
)
MEMORY = Metric(
    "wildflower_memory_bytes", "gauge", ("run",), "Resident memory of the process that aggregates."
)
LAST_ROUND = Metric(
    "wildflower_last_round_timestamp_seconds", "gauge", _STAGE, "When the last round was over."
)
NOTICES = Metric(
    "wildflower_notices_total", "counter", ("run",), "Things that a person should know."
)
WAITING = Metric(
    "wildflower_waiting_clients", "gauge", ("run",), "Clients that a fleet's run lacks to begin."
)
RUN_FAILED = Metric(
    "wildflower_run_failed", "gauge", ("run",), "1 when a fleet's run ended by failing, else 0."
)
ARTEFACT_BYTES = Metric(
    "wildflower_artefact_bytes", "gauge", ("run", "file"), "The size of an exported file."
)
ARTEFACT_SCORE = Metric(
    "wildflower_artefact_score",
    "gauge",
    ("run", "file", "metric"),
    "The score of an exported file on the test data.",
)

RUN_METRICS = (
    ROUNDS, ATTEMPTS, ROUND, STAGE_ROUNDS, STAGE_CLIENTS, CLIENTS, BLOCKS, QUEUE, ROUND_SECONDS,
    PHASE_SECONDS, BYTES, TRAIN_LOSS, EVALUATION, MEMORY, LAST_ROUND, NOTICES, WAITING, RUN_FAILED,
    ARTEFACT_BYTES, ARTEFACT_SCORE,
)  # fmt: skip

SUPERLINK_UP = Metric(
    "wildflower_superlink_up", "gauge", (), "1 while Flower's SuperLink answers, else 0."
)
SUPERLINK_STARTS = Metric(
    "wildflower_superlink_starts_total", "counter", (), "How often a SuperLink came up."
)
RUNS = Metric(
    "wildflower_runs", "gauge", ("status",), "Flower's runs: pending ones are the server's queue."
)
NODES = Metric("wildflower_nodes", "gauge", ("status",), "Devices: online, offline or registered.")
KEYS = Metric("wildflower_known_devices", "gauge", (), "Devices whose key may connect.")
CERTIFICATE = Metric(
    "wildflower_certificate_expiry_timestamp_seconds",
    "gauge",
    (),
    "When the server's certificate expires.",
)

SERVER_METRICS = (SUPERLINK_UP, SUPERLINK_STARTS, RUNS, NODES, KEYS, CERTIFICATE)

CONNECTED = Metric(
    "wildflower_client_connected", "gauge", (), "1 while this device is connected to its server."
)
HOSTED = Metric("wildflower_client_hosted", "gauge", (), "Clients whose data this device has.")
ANSWERS = Metric(
    "wildflower_client_messages_total",
    "counter",
    ("verb", "outcome"),
    "Messages of the server, by outcome: answered, declined, refused, died, unwanted.",
)
ANSWER_SECONDS = Metric(
    "wildflower_client_work_seconds_total", "counter", ("verb",), "Seconds of work on messages."
)
CLIENT_BYTES = Metric(
    "wildflower_client_transferred_bytes_total",
    "counter",
    ("direction",),
    "Bytes of messages: down to this device, up from it.",
)
TRAINER_STARTS = Metric(
    "wildflower_client_trainer_starts_total", "counter", (), "How often the trainer was started."
)
TRAINER_MEMORY = Metric(
    "wildflower_client_trainer_memory_bytes", "gauge", (), "Resident memory of the trainer."
)

CLIENT_METRICS = (
    CONNECTED, HOSTED, ANSWERS, ANSWER_SECONDS, CLIENT_BYTES, TRAINER_STARTS, TRAINER_MEMORY,
)  # fmt: skip

METRICS = (BUILD_INFO, *RUN_METRICS, *SERVER_METRICS, *CLIENT_METRICS)

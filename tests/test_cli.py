"""The command line: fast, documented, scriptable."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from deploy.cli import app, run
from shared_models.datasets.catalog import CATALOG

VERBS = (
    "simulate",
    "export",
    "verify",
    "predict",
    "bench",
    "compare",
    "report",
    "live",
    "models",
    "client",
    "doctor",
    "client",
    "submit",
    "status",
    "stop",
    "logs",
    "data list",
    "data fetch",
    "data info",
    "server init",
    "server start",
    "server add-client",
    "server list-clients",
    "server remove-client",
    "server execute",
    "k8s render",
    "k8s keys",
)
RUN_ON = ("live", "client", "server start", "server execute")  # answers nothing
MANIFESTS = ("k8s render", "k8s keys")  # answers in YAML, to kubectl


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_verb_is_listed_here() -> None:
    own = {command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {
        f"{group.name} {command.name}"
        for group in app.registered_groups
        if group.typer_instance
        for command in group.typer_instance.registered_commands
    }
    assert own | groups == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert f"wildflower {verb}" in told
    assert "Example" in told
    assert ("--json" in told) != (verb in RUN_ON + MANIFESTS)


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys, deploy.cli as cli; code = cli.run(sys.argv[1:]);"
        "heavy = {'torch', 'flwr', 'ray', 'onnx', 'onnxruntime', 'grpc', 'cryptography'};"
        "heavy &= set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if heavy or code else 0)"
    )
    for arguments in (["--help"], ["simulate", "--help"], ["data", "list"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert run(["--help"]) == 0
    assert run([]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("wildflower ")
    assert told.out.count("Usage: wildflower") == 2
    assert told.err == ""


def test_models_are_listed_with_exact_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {row["name"]: row["parameters"] for row in answer(capsys, "models")}
    assert sizes["mnist-cnn"] == 347_146
    assert sizes["watch-lstm"] == 18_887


def test_data_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    names = {row["name"] for row in answer(capsys, "data", "list")}
    assert names == set(CATALOG)
    assert answer(capsys, "data", "fetch", "digits")["path"].endswith(".whl")
    told = answer(capsys, "data", "info", "digits", "--partition", "shards", "--clients", "20")
    assert (told["clients"], told["train"], told["test"]) == (20, 1438, 359)
    assert told["values"] == [0.0, 16.0]
    assert all(sum(1 for n in row if n) <= 4 for row in told["histograms"].values())


def test_doctor_finds_this_environment_sound(capsys: pytest.CaptureFixture[str]) -> None:
    findings = {row["check"]: row["status"] for row in answer(capsys, "doctor")}
    assert findings["torch"] == findings["LiteRT"] == findings["ONNX Runtime"] == "ok"


def test_tables_are_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["models"], ["data", "list"], ["data", "info", "watch"], ["doctor"]):
        assert run(arguments) == 0
    told = capsys.readouterr().out
    assert "347,146" in told
    assert "8 clients with 295 to 561 examples" in told

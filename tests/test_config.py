"""Config: one line for every mistake, naming file, key and the nearest valid one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_models.config import (
    BUILTIN,
    Config,
    ExportStage,
    TrainStage,
    parse_config,
    read_config,
    to_toml,
)
from shared_models.errors import ConfigError
from tests.conftest import DIGITS, ROOT


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "my.toml", overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_every_example_is_valid_and_survives_its_own_toml(path: Path) -> None:
    config = read_config(path)
    assert parse_config(to_toml(config), "again") == config
    assert config.name == path.stem


def test_the_builtin_config_is_valid() -> None:
    assert parse_config(BUILTIN, "builtin").seed == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.train.ronds=3", "unknown key 'stages.train.ronds'; did you mean 'rounds'?"),
        ("sed=1", "unknown key 'sed'; did you mean 'seed'?"),
        ("data.partion=iid", "unknown key 'data.partion'; did you mean 'partition'?"),
        ("plan.blocksize=3", "unknown key 'plan.blocksize'; did you mean 'block_size'?"),
        ("stages.train.rounds=many", "'stages.train.rounds' must be a valid integer, got 'many'"),
        ("stages.train.rounds=1.5", "'stages.train.rounds' must be a valid integer"),
        ("stages.train.rounds=0", "'stages.train.rounds' must be greater than or equal to 1"),
        ("stages.train.local_learning_rate=nan", "'stages.train.local_learning_rate' must be"),
        ("data.partition=idd", "'data.partition' must be 'iid', 'shards'"),
        ("stages.train.kind=trian", "'stages.train.kind' must be one of: train, finetune, "),
        ("data=3", "'data' must be"),
        ("stages.train.objective=fedproxx", "got 'fedproxx'; did you mean 'fedprox'?"),
        ("stages.train.objective=x", "'stages.train.objective' must be 'fedavg', 'fedprox', "),
        ("stages=[]", "stages: at least one is needed"),
        ("seed=-1", "'seed' must be greater than or equal to 0"),
        (f"seed={2**64}", "'seed' must be less than"),
        ("task=digit-cnn", "task: 'digit-cnn' does not exist; did you mean 'digits-cnn'?"),
        ("evaluate.data=digits", "evaluate.data: must be 'test', 'none' or a path ending in .npz"),
        ("stages.train.server_momentum=1.0", "'stages.train.server_momentum' must be less than 1"),
        ("stages.train.name=model", "no stage may be called 'model'"),
        ("data.name=''", "'data.name'"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    told = refused(DIGITS, override)
    assert told.startswith("my.toml: ")
    assert message in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.partition=natural"], "data.clients: contradicts partition 'natural'"),
        (["data.partition=draws"], "data.examples_per_client: is missing; partition 'draws'"),
        (["data.examples_per_client=3"], "data.examples_per_client: contradicts 'iid'"),
        (
            ["stages.train.server_optimizer=sgd", "stages.train.server_momentum=0.9"],
            "stages.train.server_momentum: contradicts server_optimizer 'sgd'",
        ),
    ],
)
def test_contradictions_are_refused_in_the_users_own_keys(
    overrides: list[str], message: str
) -> None:
    assert message in refused(DIGITS, *overrides)


def test_several_mistakes_are_told_at_once_the_misspelt_key_first() -> None:
    told = refused(DIGITS, "stages.train.rounds=0", "engine=rai", "sede=1", "seed=-1", "workers=0")
    assert told.startswith("my.toml: unknown key 'sede'; did you mean 'seed'?; key 'seed' must be ")
    assert "did you mean 'ray'?" in told
    assert told.endswith(" (and 2 more)")


PERSONAL = "stages.train.personal=['head.']"


@pytest.mark.parametrize("key", ["early_stopping_rounds=2", "keep_best=true"])
def test_the_server_cannot_judge_what_it_has_no_whole_model_of(key: str) -> None:
    told = refused(DIGITS, PERSONAL, f"stages.train.{key}")
    assert told.endswith(": the server has no personal arrays, only clients can measure")
    measured = (PERSONAL, f"stages.train.{key}", "evaluate.clients_fraction=0.5")
    parse_config(DIGITS, "x", overrides=measured)


def test_a_model_without_its_personal_arrays_is_not_exported() -> None:
    exported = DIGITS + '[[stages]]\nkind = "export"\n'
    told = refused(exported, PERSONAL)
    assert "stages.train.personal: contradicts export: the server has no such" in told
    shared = DIGITS[DIGITS.index("[[stages]]") :].replace('"train"', '"shared"', 1)
    parse_config(DIGITS + shared + '[[stages]]\nkind = "export"\n', "x", overrides=[PERSONAL])


def test_another_choice_takes_the_numbers_of_the_one_before_along() -> None:
    resolved = to_toml(parse_config(DIGITS, "x", overrides=["stages.train.aggregator=krum"]))
    chosen = ["stages.train.aggregator=median", "stages.train.server_optimizer=sgd"]
    stage = parse_config(resolved, "x", overrides=chosen).stage("train")
    assert (stage.byzantine_fraction, stage.server_momentum) == (None, None)
    own = ["stages.train.byzantine_fraction=0.1", *chosen]
    assert "byzantine_fraction: contradicts aggregator 'median'" in refused(resolved, *own)


def test_patience_as_long_as_the_stage_is_none() -> None:
    told = refused(DIGITS, "stages.train.early_stopping_rounds=4")
    assert "stages.train.early_stopping_rounds: must be less than rounds" in told


def test_a_list_that_is_none_is_shown_as_one() -> None:
    told = refused(DIGITS, "stages.train.personal=head.")
    assert told == """my.toml: key 'stages.train.personal' must be a list, like ["head."]"""


def test_missing_keys_and_stage_order() -> None:
    assert "key 'task' is missing" in refused(DIGITS.replace("task =", "# task ="))
    assert "data.clients: is missing" in refused(DIGITS.replace("clients = 12", ""))
    twice = DIGITS + DIGITS[DIGITS.index("[[stages]]") :]
    assert "stages: the name 'train' is used twice" in refused(twice)
    export_only = DIGITS[: DIGITS.index("[[stages]]")] + '[[stages]]\nkind = "export"\n'
    assert "needs a train stage before it" in refused(export_only)
    exported = DIGITS + '[[stages]]\nkind = "export"\n'
    assert "contradicts the export stage" in refused(exported, "evaluate.data=none")
    assert "stages: one export stage is enough" in refused(
        exported + '[[stages]]\nkind = "export"\nname = "again"\n'
    )
    assert "'stages.export.formats'" in refused(exported, "stages.export.formats=[]")


def test_one_mistake_is_told_as_one() -> None:
    told = refused(DIGITS.replace("rounds = 4", "ronds = 4"))
    assert told == "my.toml: unknown key 'stages.train.ronds'; did you mean 'rounds'?"


def test_a_file_name_that_is_no_name_still_names_the_run(tmp_path: Path) -> None:
    path = tmp_path / "my first (try).toml"
    path.write_text(DIGITS.replace('name = "digits"', "", 1))
    assert read_config(path).name == "my-first-try"


def test_the_resolved_config_names_the_defaults_that_count() -> None:
    assert parse_config(DIGITS, "x").stage("train").server_momentum == 0.9


def test_broken_toml_says_where() -> None:
    assert "my.toml: not valid TOML" in refused("task = = 3")
    assert "line 1" in refused("task = = 3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nonsense", "expected key=value"),
        ("stages.trian.rounds=3", "no stage 'trian'; did you mean 'train'?"),
        ("task.name=x", "task is not a table"),
    ],
)
def test_a_wrong_override_is_shown(override: str, message: str) -> None:
    assert message in refused(DIGITS, override)


def test_overrides_reach_tables_and_stages() -> None:
    config = parse_config(DIGITS, "x", overrides=["stages.train.rounds=9", "data.alpha=2.0"])
    assert (config.stage("train").rounds, config.data.alpha) == (9, 2.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: there is no such file"):
        read_config(tmp_path / "nothing.toml")


def test_paths_mean_the_same_from_everywhere() -> None:
    config = parse_config(DIGITS, "x", overrides=["data.name=mine.npz"])
    assert config.data.name == str(Path("mine.npz").absolute())


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([])
)
KEYS = [*Config.model_fields, *TrainStage.model_fields, "name", "kind", "clients", "nonsense"]


TABLES = st.dictionaries(st.sampled_from(KEYS), scalars)


@given(
    st.dictionaries(st.sampled_from(KEYS), st.one_of(scalars, TABLES)),
    st.sampled_from(KEYS),
    scalars,
)
@settings(deadline=None)
def test_any_tables_are_parsed_or_refused_in_one_line(
    change: dict[str, object], key: str, value: object
) -> None:
    values = {**tomllib.loads(DIGITS), **change}
    if isinstance(values["stages"], list):
        values["stages"] = [{**values["stages"][0], key: value}] if values["stages"] else []
    text = tomli_w.dumps({k: v for k, v in without_none(values).items() if v is not None})
    try:
        parse_config(text, "x", overrides=["stages.train.rounds=3"])
    except ConfigError as error:
        told = str(error)
    else:
        return
    assert "\n" not in told


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Drops what TOML cannot say."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            kept[key] = without_none(value)
        elif isinstance(value, list):
            kept[key] = [without_none(v) if isinstance(v, dict) else v for v in value]
        elif value is not None:
            kept[key] = value
    return kept


def test_config_values_are_frozen() -> None:
    stage = parse_config(DIGITS, "x").stage("train")
    with pytest.raises(ValueError, match="frozen"):
        stage.rounds = 3  # type: ignore[misc]
    assert isinstance(stage, TrainStage)
    assert ExportStage().max_score_drop == 0.01

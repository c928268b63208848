"""The record of a run: what it refuses, what it keeps, and the table of metrics read from it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.record import CURRENCY_LABELS, METRICS, RECORD_FILE, VOLATILE_FIELDS, Metric, RunRecord, write_atomically

TYPES = typing.get_type_hints(RunRecord)
SAMPLES: dict[type, Any] = {str: "x", int: 3, float: 0.25}
VALUES = {**{name: SAMPLES[kind] for name, kind in TYPES.items()}, "currency": "macs"}
RECORD = RunRecord(**VALUES)


def one_of(kind: type) -> str:
    return next(name for name, known in TYPES.items() if known is kind)


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    numbers = st.floats(-1e18, 1e18) | st.integers(-(2**60), 2**60)
    words = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=20)
    strategies = {str: words, int: st.integers(-(2**60), 2**60), float: numbers}
    sensible = {name: st.floats(0, 1) for name in TYPES if name.endswith("accuracy")}
    sensible |= {"base_macs": st.integers(1, 2**60), "base_price": st.floats(1, 1e18)}
    sensible["currency"] = st.sampled_from(sorted(CURRENCY_LABELS))
    return RunRecord(**{name: draw(sensible.get(name, strategies[kind])) for name, kind in TYPES.items()})


def test_every_field_is_a_json_scalar() -> None:
    assert set(TYPES.values()) == {str, int, float}
    assert list(RECORD.to_mapping()) == [field.name for field in dataclasses.fields(RunRecord)] == list(TYPES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@settings(deadline=None, max_examples=30)
@given(record=records())
def test_a_record_survives_its_mapping_and_its_file(folder: Path, record: RunRecord) -> None:
    assert RunRecord.from_mapping(record.to_mapping()) == record
    assert record.write(folder) == folder / RECORD_FILE
    assert RunRecord.read(folder / RECORD_FILE) == record


def test_a_missing_field_is_refused_by_name() -> None:
    for name in TYPES.keys() - {"notes", "checkpoint_sha256"}:
        with pytest.raises(ValueError, match=rf"missing fields \['{name}'\]"):
            RunRecord.from_mapping({key: value for key, value in VALUES.items() if key != name})


def test_notes_may_be_missing_and_unknown_fields_may_not() -> None:
    assert RunRecord.from_mapping({key: value for key, value in VALUES.items() if key != "notes"}).notes == ""
    with pytest.raises(ValueError, match=r"unknown fields \['flops'\]"):
        RunRecord.from_mapping({**VALUES, "flops": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("currency", "flops"),
        ("arm", "two\nlines"),
        ("device", "\ud800"),
        ("test_accuracy", 5.0),
        ("best_val_accuracy", -0.1),
        ("base_macs", 0),
        ("base_price", -1.0),
        ("params", 10**400),
    ],
)
def test_a_value_that_no_run_leaves_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"record field {name}"):
        RunRecord.from_mapping({**VALUES, name: value})


WRONG: dict[type, tuple[Any, ...]] = {
    str: (1, 0.5, None, True, ["x"]),
    int: ("1", 0.5, 3.0, None, True, [1]),
    float: ("0.5", None, False, [0.5], {}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_value_of_another_type_is_neither_read_nor_written(tmp_path: Path, kind: type) -> None:
    for name in (name for name, known in TYPES.items() if known is kind):
        for value in WRONG[kind]:
            with pytest.raises(ValueError, match=rf"record field {name}=.* should be {kind.__name__}"):
                RunRecord.from_mapping({**VALUES, name: value})
            with pytest.raises(ValueError, match=rf"record field {name}=.* should be {kind.__name__}"):
                dataclasses.replace(RECORD, **{name: value}).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_neither_read_nor_written(tmp_path: Path, value: float) -> None:
    for name in (name for name, kind in TYPES.items() if kind is float):
        with pytest.raises(ValueError, match=rf"record field {name}=.* is not finite"):
            RunRecord.from_mapping({**VALUES, name: value})
        with pytest.raises(ValueError, match=rf"record field {name}=.* is not finite"):
            dataclasses.replace(RECORD, **{name: value}).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_are_fine_where_fractions_are_expected() -> None:
    name = one_of(float)
    assert getattr(RunRecord.from_mapping({**VALUES, name: 2}), name) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"study": "x"}', json.dumps({**VALUES, "macs": 1.5}), "\x00"]
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / RECORD_FILE
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path} is not a valid record: "):
        RunRecord.read(path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_bytes(b"\xff\xfe\x81")
    with pytest.raises(ValueError, match=r"is not a valid record"):
        RunRecord.read(tmp_path / RECORD_FILE)


def test_the_file_is_plain_json_with_every_field(tmp_path: Path) -> None:
    text = RECORD.write(tmp_path).read_text()
    written = json.loads(text)
    assert len(written.pop("seal")) == 64 and written == VALUES and text.endswith("}\n")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    seen: list[str] = []

    def crash(source: Path, target: Path) -> None:
        seen.append(Path(target).read_text())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, "new")
    assert seen == ["old"] and path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_every_metric_is_a_number_of_the_record() -> None:
    assert {"test_accuracy", "val_accuracy", "test_loss", "macs", "params"} <= METRICS.keys()
    for name, metric in METRICS.items():
        assert metric.field == name and TYPES[name] in (int, float)
        assert metric.label and len({other.label for other in METRICS.values()}) == len(METRICS)


@pytest.mark.parametrize(
    ("name", "stored", "shown", "text"),
    [
        ("test_accuracy", 0.98765, 98.765, "98.77"),
        ("macs", 385_800_000, 385.8, "385.80"),
        ("params", 5_288_548, 5.288548, "5.289"),
        ("activations", 6_500_000, 6.5, "6.500"),
        ("peak_memory_bytes", 3 * 2**20, 3.0, "3"),
        ("test_loss", 1.23456, 1.23456, "1.2346"),
        ("resolution", 224, 224.0, "224"),
    ],
)
def test_metrics_are_shown_in_the_unit_of_their_label(name: str, stored: float, shown: float, text: str) -> None:
    metric = METRICS[name]
    assert isinstance(metric, Metric)
    value = metric.show(dataclasses.replace(RECORD, **{name: stored}))
    assert value == pytest.approx(shown) and metric.format(value) == text


def test_macs_say_that_they_are_macs() -> None:
    assert METRICS["macs"].label == "FLOPs, counted as MACs (M)"


def test_only_fields_of_the_record_may_differ_between_two_equal_runs() -> None:
    assert TYPES.keys() > VOLATILE_FIELDS
    decided = {"weights_sha256", "predictions_sha256", "test_accuracy", "macs", "config_hash", "steps", "ema_updates"}
    assert not VOLATILE_FIELDS & decided

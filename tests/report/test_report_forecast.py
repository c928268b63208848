"""Forecasts: kept and read again, scored against records, and the noise of a pilot read from its folder."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_pilot import write_runs
from synthetic_study import record

from src.record import RunRecord
from src.report.forecast import PLAN_FILE, ArmForecast, Forecast, score, wall_seconds
from src.report.pilot import read_pilot


def run(name: str, seconds: float) -> ArmForecast:
    return ArmForecast(name, "compound", 2.0, 0, 10, 20, 5, 0.1, seconds, seconds + 4, 2**20, 2**10, "9 steps")


def forecast(*arms: ArmForecast) -> Forecast:
    return Forecast("s", "2026-01-01T00:00:00+00:00", "abc", "Linux", "cpu", 1, 7.0, 99.0, 0.0, arms, ("a note",))


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    kept = forecast(run("a", 10.0), run("b", 12.5))
    assert kept.write(tmp_path / "new" / "study") == tmp_path / "new" / "study" / PLAN_FILE
    assert Forecast.read(tmp_path / "new" / "study") == kept


@pytest.mark.parametrize("damage", [None, "{", "[]", "{}", '{"arms": [{"name": "a"}]}'])
def test_a_damaged_forecast_is_refused_by_name(tmp_path: Path, damage: str | None) -> None:
    if damage is not None:
        (tmp_path / PLAN_FILE).write_text(damage)
    with pytest.raises(ValueError, match=f"{PLAN_FILE} holds no forecast"):
        Forecast.read(tmp_path)


def test_a_forecast_of_another_version_is_refused(tmp_path: Path) -> None:
    path = forecast(run("a", 1.0)).write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
    with pytest.raises(ValueError, match="colour"):
        Forecast.read(tmp_path)


def test_a_score_by_hand() -> None:
    made = forecast(run("a", 10.0), run("b", 20.0), run("c", 30.0), run("d", 40.0))
    records = {
        "a": record(seconds=12.0, attempts=1),
        "b": record(seconds=18.0, attempts=1),
        "d": record(seconds=5.0, attempts=2),  # the end of a run that was interrupted
        "stranger": record(seconds=1e6, attempts=1),
    }
    found = score(made, records)
    assert found is not None
    assert [one.name for one in found.runs] == ["a", "b"]
    assert (found.forecast, found.actual, found.missing) == (30.0, 30.0, 1)
    assert found.ratio == 1.0 and found.error == pytest.approx((0.2 + 0.1) / 2) and found.worst == pytest.approx(0.2)
    assert str(found) == (
        "forecast 30 s, took 30 s (+0 %) over 2 run(s), 1 not finished; a run was off by 15 % on average and by 20 %"
        " at most"
    )
    assert score(made, {"stranger": records["stranger"]}) is None


def test_wall_time_by_hand() -> None:
    assert wall_seconds([5, 3, 4], 1) == 12
    assert wall_seconds([5, 3, 4], 2) == 7  # 5 beside 3 and then 4
    assert wall_seconds([5, 3, 4], 9) == 5
    assert wall_seconds([], 2) == 0


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=12), st.integers(1, 5))
def test_wall_time_lies_between_a_fair_share_and_grahams_bound(seconds: list[float], jobs: int) -> None:
    found = wall_seconds(seconds, jobs)
    share = math.fsum(seconds) / jobs
    assert max(share, max(seconds)) <= found * (1 + 1e-9)
    assert found <= share + (1 - 1 / jobs) * max(seconds) + 1e-6


def test_a_pilots_noise_is_read_from_its_folder(tmp_path: Path) -> None:
    write_runs(
        tmp_path / "pilot", {"depth": {0: 0.8, 1: 0.8, 2: 0.8}, "width": {0: 0.9, 1: 0.9}, "base": {0: 0.5}}, 2000
    )
    noise, used, odd = read_pilot(tmp_path / "pilot")
    assert sorted({one.arm for one in used}) == ["depth", "width"] and len(used) == 5
    assert noise.degrees == 3 and odd == []
    theory = math.sqrt((0.8 * 0.2 + 0.9 * 0.1) / 2 / 2000)  # both arms count alike
    assert noise.floor == pytest.approx(100 * theory, rel=0.06)
    assert noise.planned == max(noise.upper or 0, noise.floor or 0)
    assert "2 arm(s) with 2 to 3 seeds" in noise.source


def test_a_pilot_whose_predictions_are_gone_or_damaged_has_no_floor(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", {"depth": {0: 0.8, 1: 0.7}}, 100, stored=False)
    assert read_pilot(tmp_path / "a")[0].floor is None
    write_runs(tmp_path / "b", {"depth": {0: 0.8, 1: 0.7}}, 100)
    next((tmp_path / "b").glob("*/predictions.npz")).write_bytes(b"PK\x03\x04 half a file")
    noise, _, (odd,) = read_pilot(tmp_path / "b")
    assert noise.floor is None and "predictions.npz is unreadable" in odd


def test_the_same_run_twice_is_one_run(tmp_path: Path) -> None:
    write_runs(tmp_path / "pilot", {"depth": {0: 0.8, 1: 0.7}}, 500)
    before, used, _ = read_pilot(tmp_path / "pilot")
    for path in sorted((tmp_path / "pilot").glob("*seed0*")):
        copy = path.with_name(path.name + "-copy")
        copy.mkdir()
        for file in path.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        again = dataclasses.replace(RunRecord.read(copy / "record.json"), started="later")
        again.write(copy)
    after, still, _ = read_pilot(tmp_path / "pilot")
    assert after.pilot == before.pilot and len(still) == len(used) == 2


@pytest.mark.parametrize(
    ("accuracies", "told"),
    [({"depth": {0: 0.8}, "width": {0: 0.9}}, "no arm with two finished seeds"), ({}, "holds no arm's folder")],
)
def test_a_pilot_of_single_runs_is_refused(tmp_path: Path, accuracies: dict[str, dict[int, float]], told: str) -> None:
    (tmp_path / "pilot").mkdir()
    write_runs(tmp_path / "pilot", accuracies, 50)
    with pytest.raises(ValueError, match=told):
        read_pilot(tmp_path / "pilot")

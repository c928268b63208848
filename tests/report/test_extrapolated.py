"""Forecasts of larger budgets: written before the runs, kept, scored after them, and told in the report."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_ahead import BASE, EARLY, LATE, SMALL, large, runs, small, write
from synthetic_study import base_records, folder_name, record, write_arm, write_status

from src import extrapolate
from src.arm_folder import ArmLock
from src.record import RunRecord
from src.report.ahead import EXTRAPOLATION_FILE, NOT_SCORED, SCORED, WAITING, Scored, read_forecasts, register, total
from src.report.extrapolated import forecast
from src.report.forecast import PLAN_FILE, ArmForecast, Forecast
from src.report.page import PAGE_FILE
from src.report.write import SUMMARY_JSON, SUMMARY_MD, Report, build, render, write_report
from src.verdict.extrapolation import Curve, Level, expect, expect_difference

NOW = datetime(2026, 2, 1, tzinfo=UTC)  # between EARLY and LATE


def foretold(study: Path, *costs: float, now: datetime = NOW) -> Path:
    """The study with forecasts in its file."""
    register(study, forecast(study, costs or (8.0,), None, now, "0123abcd")[0])
    return study


def scored(report: Report) -> dict[str, Scored]:
    return {one.title: one for one in report.forecasts}


def shown(report: Report, width: int = 120) -> str:
    stream = io.StringIO()
    render(report, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Small budgets, a forecast, larger ones, a report."""
    study = write(tmp_path_factory.mktemp("outputs") / "ahead", small())
    return write_report(write(foretold(study), large()))


def test_a_forecast_is_that_of_the_records_and_names_them(tmp_path: Path) -> None:
    [entry] = read_forecasts(foretold(write(tmp_path / "s", small())))
    assert (entry.cost, entry.seeds, entry.currency, entry.network) == (8.0, 3, "macs", "b0")
    assert entry.written == "2026-02-01T00:00:00+00:00" and entry.code_revision == "0123abcd"
    base = Level(1.0, tuple(100 * v for v in BASE))
    curves = {
        arm: Curve((base, *(Level(float(b), tuple(100 * v for v in own)) for b, own in budgets.items())), True)
        for arm, budgets in SMALL.items()
    }
    for arm in entry.arms:
        expected, kept = expect(curves[arm.name], 8.0, 3)
        assert dataclasses.astuple(arm.expected) == pytest.approx(dataclasses.astuple(expected))
        assert arm.shapes == pytest.approx(kept) and arm.budgets == (1.0, 2.0, 4.0)
        own = [r for r in small() if r.arm in ("base", arm.arm)]
        assert {b.folder: b.config_hash for b in arm.rests_on} == {folder_name(r): r.config_hash for r in own}
    [both] = entry.differences
    difference = expect_difference(curves["compound"], curves["depth"], 8.0, 3)
    assert dataclasses.astuple(both.expected) == pytest.approx(dataclasses.astuple(difference))
    assert (both.name, both.rival, both.claimed) == ("compound", "depth", True)


def test_the_file_is_added_to_and_what_stands_there_keeps_its_date(tmp_path: Path) -> None:
    study = foretold(write(tmp_path / "s", small()), 8.0, 16.0)
    before = (study / EXTRAPOLATION_FILE).read_bytes()
    again = register(study, forecast(study, (8.0,), None, datetime(2026, 2, 9, tzinfo=UTC), "other")[0])
    assert (study / EXTRAPOLATION_FILE).read_bytes() == before and again[0].written.startswith("2026-02-01")
    write(study, runs({"compound": {2: [0.830] * 3 + [0.834], 4: [0.85] * 3 + [0.851]}}, started=EARLY)[3::4])
    foretold(study, now=datetime(2026, 2, 9, tzinfo=UTC))
    assert [(e.cost, e.written[:10]) for e in read_forecasts(study)] == [
        (8.0, "2026-02-01"),
        (16.0, "2026-02-01"),
        (8.0, "2026-02-09"),
    ]


def test_scores_by_hand(whole: Report) -> None:
    found = scored(whole)
    assert {one.state for one in found.values()} == {SCORED}
    one = found["compound"]
    came = (86.2 + 86.5 + 86.1) / 3
    assert one.came == pytest.approx(came) and one.error == pytest.approx(came - one.expected.value)
    assert one.inside and one.score == pytest.approx(one.expected.high - one.expected.low)
    assert (one.runs_inside, one.runs) == (3, 3)
    both = found["compound - depth"]
    assert both.came == pytest.approx(came - (81.8 + 81.5 + 81.9) / 3)
    assert both.claimed and both.right
    assert total(whole.forecasts).startswith("2 of 2 accuracies came inside their 95 % interval (mean absolute error")
    assert total(whole.forecasts).endswith("1 of 1 orders that were forecast came so")


def test_what_comes_outside_is_told_and_costs_forty_times_the_distance(tmp_path: Path) -> None:
    study = foretold(write(tmp_path / "s", small()))
    low = runs({"compound": {8: [0.70, 0.701, 0.702]}, "depth": {8: [0.818, 0.815, 0.819]}}, started=LATE)
    found = scored(write_report(write(study, low)))
    one, both = found["compound"], found["compound - depth"]
    e = one.expected
    assert not one.inside and one.runs_inside == 0
    assert one.score == pytest.approx(e.high - e.low + 40 * (e.low - 70.1))
    assert both.claimed and both.right is False and "came otherwise" in str(both)
    assert total(found.values()).endswith("0 of 1 orders that were forecast came so")


def test_the_report_tells_of_it_everywhere(whole: Report) -> None:
    one = scored(whole)["compound"]
    number = f"{one.expected.value:.2f}"
    text = " ".join(shown(whole).split())
    assert "Forecasts and what came" in text and number in text and "No part of the verdict." in text
    assert all(len(line) <= 80 for line in shown(whole, 80).splitlines())
    markdown = (whole.folder / SUMMARY_MD).read_text()
    row = [line for line in markdown.splitlines() if line.startswith("| compound | 8x |")][-1]
    assert number in row and "86.27" in row and "| yes |" in row and "| 3 of 3 |" in row
    content = json.loads((whole.folder / SUMMARY_JSON).read_text())
    assert [f["title"] for f in content["forecasts"]] == ["compound", "depth", "compound - depth"]
    assert content["forecasts"][0]["came"] == pytest.approx(one.came)
    assert content["forecasts_in_all"] == total(whole.forecasts)
    page = (whole.folder / PAGE_FILE).read_text()
    assert 'href="#forecasts"' in page and f">{number}</td>" in page
    assert "Hollow, dashed: forecasts" in page
    with (whole.folder / "accuracy_vs_macs.csv").open(newline="") as stream:
        [mark] = [r for r in csv.DictReader(stream) if r["mark"] == "forecast" and r["arm"] == "compound"]
    assert float(mark["low"]) == pytest.approx(one.expected.low)
    assert float(mark["FLOPs, counted as MACs (M)"]) == pytest.approx(8 * 116.3)


def test_the_verdict_says_nothing_more_for_it(tmp_path: Path, whole: Report) -> None:
    alone = write_report(write(tmp_path / "ahead", [*small(), *large()]))
    assert alone.sentences == whole.sentences and alone.findings == whole.findings
    assert all("not extrapolated" in str(regime) for regime in whole.verdict.regimes)
    assert not alone.forecasts and "orecasts" not in shown(alone)
    assert "#forecasts" not in (alone.folder / PAGE_FILE).read_text()


def test_a_forecast_waits_for_its_seeds(tmp_path: Path) -> None:
    study = foretold(write(tmp_path / "s", small()))
    found = scored(write_report(study))
    assert {(one.state, one.reason) for one in found.values() if one.rival is None} == {
        (WAITING, "no run of that cost has finished")
    }
    write(study, [r for r in large() if r.arm == "compound" and r.seed == 0])
    found = scored(write_report(study))
    assert (found["compound"].state, found["compound"].reason) == (WAITING, "1 of 3 seeds have finished")
    assert found["compound - depth"].state == WAITING and not total(found.values())
    assert "waiting: 1 of 3 seeds have finished" in (study / SUMMARY_MD).read_text()


def reason(report: Report, title: str = "compound") -> str:
    one = scored(report)[title]
    assert one.state == NOT_SCORED and one.came is None
    return one.reason


def test_a_forecast_whose_runs_have_changed_is_not_scored(tmp_path: Path) -> None:
    study = write(foretold(write(tmp_path / "s", small())), large())
    changed = next(r for r in small() if r.arm == "compound" and r.budget == 4)
    folder = study / folder_name(changed)
    dataclasses.replace(changed, predictions_sha256="f" * 64).write(folder)
    report = write_report(study)
    assert reason(report) == f"runs that it rests on have changed since or are gone ({folder.name})"
    assert reason(report, "compound - depth").startswith("compound: runs that it rests on")
    assert scored(report)["depth"].state == SCORED
    assert str(reason(report)) in shown(report, 300)


@pytest.mark.parametrize("started", ["2026-01-31T23:59:59+00:00", "2026-01-31T23:59:59", "", "yesterday"])
def test_a_forecast_after_the_start_of_its_runs_is_not_scored(tmp_path: Path, started: str) -> None:
    study = write(foretold(write(tmp_path / "s", small())), large(started=started))
    report = write_report(study)
    assert "seed 0 had started before it was written" in reason(report)
    assert "Hollow" not in (study / PAGE_FILE).read_text()  # no picture of what was no forecast


def costing(ratio: float) -> list[RunRecord]:
    """The large runs, at so many times the cost that was asked for."""
    return [dataclasses.replace(r, macs=int(r.macs * ratio), price=float(int(r.macs * ratio))) for r in large()]


def test_a_forecast_is_moved_to_what_its_budget_was_solved_to(tmp_path: Path) -> None:
    study = foretold(write(tmp_path / "s", small()))
    [entry] = read_forecasts(study)
    report = write_report(write(study, costing(0.94)))
    one, both = scored(report)["compound"], scored(report)["compound - depth"]
    ratio = int(8 * 116_300_000 * 0.94) / 116_300_000
    base = Level(1.0, tuple(100 * v for v in BASE))
    curves = [
        Curve((base, *(Level(float(b), tuple(100 * v for v in own)) for b, own in budgets.items())), True)
        for budgets in SMALL.values()
    ]
    assert one.state == SCORED and one.at == pytest.approx(ratio) and one.cost == 8.0
    expected = expect(curves[0], ratio, 3)[0]
    assert dataclasses.astuple(one.expected) == pytest.approx(dataclasses.astuple(expected))
    assert one.expected.value < entry.arms[0].expected.value
    difference = expect_difference(*curves, ratio, 3)
    assert dataclasses.astuple(both.expected) == pytest.approx(dataclasses.astuple(difference))
    assert "compound at 8x → 7.52x MACs" in str(one)
    # A forecast that these runs do not give by this code cannot be moved by it.
    listed = json.loads((study / EXTRAPOLATION_FILE).read_text())
    listed[0]["arms"][0]["expected"]["value"] += 0.1
    (study / EXTRAPOLATION_FILE).write_text(json.dumps(listed))
    assert reason(write_report(study)) == "its runs cost 7.52x, where this code forecasts otherwise than that code did"


def test_runs_that_cost_or_were_trained_otherwise_are_not_what_was_forecast(tmp_path: Path) -> None:
    study = foretold(write(tmp_path / "s", small()))
    assert reason(write_report(write(study, costing(1.2)))) == "its runs at 8x cost 9.6x"
    study = foretold(write(tmp_path / "t", small()))
    assert reason(write_report(write(study, large(recipe_hash="longer")))) == "its runs at 8x were trained otherwise"


def test_a_guard_stands_in_the_way_of_a_score_too(tmp_path: Path) -> None:
    study = write(foretold(write(tmp_path / "s", small())), large(test_openings=2))
    assert reason(write_report(study)).startswith("G4 at 8x")


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"written": "2026-02-01T00:00:00+00:00"}]', None, "seeds"])
def test_a_damaged_file_is_a_remark_in_the_report_and_a_mistake_for_the_command(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    study = foretold(write(tmp_path / "s", small()))
    path = study / EXTRAPOLATION_FILE
    if content in (None, "seeds"):
        entries = json.loads(path.read_text())
        entries[0]["arms"][0]["expected"]["low"] = "nan"
        if content == "seeds":
            entries = json.loads(path.read_text().replace('"seeds": 3', '"seeds": 2.5'))
        content = json.dumps(entries)
    path.write_text(content)
    report = write_report(study)
    assert not report.forecasts and any("s/extrapolation.json is damaged" in remark for remark in report.remarks)
    assert extrapolate.main([str(study), "--to", "16"]) == 2
    assert "is damaged" in capsys.readouterr().err and path.read_text() == content


def test_building_writes_nothing_and_says_what_was_written(whole: Report) -> None:
    before = {path.name: path.read_bytes() for path in whole.folder.iterdir() if path.is_file()}
    report, contents = build(whole.folder)
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir() if path.is_file()} == before
    made = {name: content for name, content in contents.items() if content is not None}
    assert made == {path.name: before[path.name] for path in report.files}


# The command


def test_the_command_prints_and_keeps_a_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "s", small())
    assert extrapolate.main([str(study), "--to", "16", "8", "--seeds", "5"]) == 0
    said = capsys.readouterr().out
    entries = read_forecasts(study)
    assert [(e.cost, e.seeds) for e in entries] == [(8.0, 5), (16.0, 5)]
    assert "b0 on cifar10 at 8x MACs, mean of 5 seeds" in said and "compound - depth" in said
    assert f"{entries[0].arms[0].expected.value:.2f}" in said and str(study / EXTRAPOLATION_FILE) in said


def test_what_has_been_run_is_not_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "s", [*small(), *(r for r in large() if r.arm == "depth" and r.seed == 0)])
    assert extrapolate.main([str(study), "--to", "8"]) == 0
    assert "depth at 8x: runs have finished there, and a forecast after the fact is none" in capsys.readouterr().out
    assert [arm.name for arm in read_forecasts(study)[0].arms] == ["compound"]
    write(study, [r for r in large() if r.arm == "compound"])
    before = (study / EXTRAPOLATION_FILE).read_bytes()
    assert extrapolate.main([str(study), "--to", "8"]) == 2
    assert "a forecast after the fact is none" in capsys.readouterr().err
    assert (study / EXTRAPOLATION_FILE).read_bytes() == before


def test_what_is_running_is_not_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "s", small())
    folder = study / "compound-8x-seed0-00000000"
    write_status(folder, "running")
    lock = ArmLock(folder)
    assert lock.acquire()  # somebody is really at it
    assert extrapolate.main([str(study), "--to", "8"]) == 0
    lock.release()
    assert "compound at 8x: a run is under way there" in capsys.readouterr().out
    assert [arm.name for arm in read_forecasts(study)[0].arms] == ["depth"]


def changed(**changes: object) -> list[RunRecord]:
    """The small study with the runs at 4x changed."""
    return [dataclasses.replace(r, **changes) if r.budget == 4 else r for r in small()]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (base_records(BASE), "only the base has finished"),
        (runs({"compound": {2: [0.83, 0.84, 0.82]}}), "needs runs at two costs, got 1"),
        ([r for r in small() if r.seed < 2], "G10 at 2x: compound and depth have two seeds"),
        (changed(test_openings=3), "G4 at 4x: compound opened the test split"),
        (changed(recipe_hash="longer"), "its runs at 4x were trained otherwise than at 2x"),
        ([dataclasses.replace(r, currency="train_macs") for r in small()], "count the study in another currency"),
    ],
)
def test_what_cannot_be_forecast_is_one_sentence(
    tmp_path: Path, records: list[RunRecord], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write(tmp_path / "s", records)
    assert extrapolate.main([str(study), "--to", "8"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1 and said in captured.err
    assert not (study / EXTRAPOLATION_FILE).exists()


def test_a_base_with_too_few_seeds_is_left_out_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write(tmp_path / "s", [r for r in small() if r.arm != "base" or r.seed == 0])
    assert extrapolate.main([str(study), "--to", "8"]) == 0
    assert "compound: the base is left out, since it has 1 of the 3 seeds" in capsys.readouterr().out
    assert [arm.budgets for arm in read_forecasts(study)[0].arms] == [(2.0, 4.0), (2.0, 4.0)]


def test_means_that_rise_and_fall_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turning = runs({"depth": {2: [0.810, 0.816, 0.813], 4: [0.812, 0.811, 0.813]}}, started=EARLY)
    write(tmp_path / "s", [*base_records(BASE), *turning])
    assert extrapolate.main([str(tmp_path / "s"), "--to", "8"]) == 0
    assert "depth: its means rise and fall (80.00, 81.30, 81.20 %)" in " ".join(capsys.readouterr().out.split())
    assert "rise and fall" not in str(forecast(write(tmp_path / "t", small()), (8.0,), None, NOW, "")[0][0].notes)


def test_noise_that_grows_is_said(tmp_path: Path) -> None:
    """Standard deviations by hand: 1 pp at 1x and 2x, 6 at 4x; F = 36 with 2 and 4 degrees of freedom, p = 0.003."""
    loud = runs({"depth": {2: [0.80, 0.81, 0.82], 4: [0.78, 0.84, 0.90]}}, started=EARLY)
    [note] = forecast(write(tmp_path / "s", [*base_records([0.77, 0.78, 0.79]), *loud]), (8.0,), None, NOW, "")[0][
        0
    ].notes
    assert note.startswith("depth: seeds scatter more at 4x than below (standard deviation 6.00 pp, 1.00 before)")
    quiet = runs({"depth": {2: [0.80, 0.81, 0.82], 4: [0.82, 0.84, 0.86]}}, started=EARLY)  # F = 4, p = 0.11
    study = write(tmp_path / "t", [*base_records([0.77, 0.78, 0.79]), *quiet])
    assert not forecast(study, (8.0,), None, NOW, "")[0][0].notes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "8"], "the following arguments are required: PATH"),
        (["{study}"], "the following arguments are required: --to"),
        (["{study}", "--to", "eight"], "'eight' is no multiple of the base's cost"),
        (["{study}", "--to", "-3"], "'-3' is no multiple"),
        (["{study}", "--to", "nan"], "'nan' is no multiple"),
        (["{study}", "--to", "8", "--seeds", "2"], "seeds=2: a mean of 3 seeds or more"),
        (["{study}", "--to", "3"], "3x is not beyond the 4x"),
        (["{study}", "--to", "64"], "64x lies 4.0 doublings beyond"),
        (["{study}-none", "--to", "8"], "does not exist; the nearest study is"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write(tmp_path / "s", small())
    assert extrapolate.main([argument.format(study=study) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1 and said in captured.err


def test_help_names_what_is_written_and_where_it_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        extrapolate.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and EXTRAPOLATION_FILE in text and "docs/extrapolation.md" in text


# The plan's forecast of time


def plan(study: Path, *names: str, written: str = "2026-02-01T00:00:00+00:00") -> None:
    arms = tuple(ArmForecast(n, "compound", 2.0, 0, 10, 20, 5, 0.1, 80.0, 84.0, 2**20, 2**10, "9 steps") for n in names)
    Forecast(study.name, written, "abc", "Linux", "cpu", 1, 7.0, 99.0, 0.0, arms, ()).write(study)


def timed(study: Path, **changes: object) -> str:
    """A study of one run of 100 seconds; the name of its folder."""
    return write_arm(study, record(**{"attempts": 1, "started": LATE, **changes}), history=False).name


def test_the_plan_is_scored_wherever_the_report_is_read(tmp_path: Path) -> None:
    study = tmp_path / "s"
    plan(study, timed(study), "compound-2x-seed1-00000000")
    report = write_report(study)
    said = "forecast 80 s, took 100 s (+25 %) over 1 run(s), 1 not finished"
    assert said in shown(report, 200) and said in (study / SUMMARY_MD).read_text()
    assert said in (study / PAGE_FILE).read_text()
    content = json.loads((study / SUMMARY_JSON).read_text())["plan"]
    assert (content["forecast_seconds"], content["actual_seconds"], content["not_finished"]) == (80.0, 100.0, 1)
    assert content["ratio"] == 1.25 and content["runs"][0]["ratio"] == 1.25 and said in content["text"]


def test_runs_that_had_started_before_the_plan_are_left_out(tmp_path: Path) -> None:
    study = tmp_path / "s"
    first = timed(study, started=EARLY)
    plan(study, first)
    report = write_report(study)
    assert report.planned is None and any("was written after its runs had started" in r for r in report.remarks)
    plan(study, first, timed(study, seed=1))
    planned = write_report(study).planned
    assert planned is not None and planned.before == 1 and len(planned.score.runs) == 1
    assert "1 of its runs had started before it and are left out" in str(planned)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be scored (it holds no forecast"),
        ("[]", "cannot be scored"),
        ("seconds", "cannot be scored"),
        ("none", "cannot be scored"),
        ("foreign", "is the plan of another study, elsewhere"),
    ],
)
def test_a_damaged_or_foreign_plan_is_a_remark(tmp_path: Path, content: str, said: str) -> None:
    study = tmp_path / "s"
    plan(study, timed(study))
    kept = json.loads((study / PLAN_FILE).read_text())
    if content in ("seconds", "none"):
        kept["arms"][0]["seconds"] = "long" if content == "seconds" else 0.0
        content = json.dumps(kept)
    if content == "foreign":
        kept["study"], kept["arms"][0]["name"] = "elsewhere", "width-2x-seed0-00000000"
        content = json.dumps(kept)
    (study / PLAN_FILE).write_text(content)
    report = write_report(study)
    [remark] = report.remarks
    assert report.planned is None and remark.startswith("plan.json: ") and said in remark
    assert str(tmp_path) not in remark  # the report of a study that was moved says the same
    assert said in (study / SUMMARY_MD).read_text()


def test_a_plan_of_runs_to_come_is_nothing_odd(tmp_path: Path) -> None:
    study = tmp_path / "s"
    timed(study)
    plan(study, "compound-2x-seed1-00000000")
    report = write_report(study)
    assert report.planned is None and not report.remarks
    assert json.loads((study / SUMMARY_JSON).read_text())["plan"] is None

"""`python -m src.optimum`: files, figure, table, the rule it writes, and every mistake in one sentence."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from synthetic_search import DESIGN, TOP, hill, plain, search_records
from synthetic_study import base_records, write_arm, write_status

from src import optimum
from src.record import RunRecord
from src.report.optimum import OPTIMUM_JSON, OPTIMUM_PNG, OptimumReport, render, write_optimum
from src.scaling.rules import Rule

ROOT = Path(__file__).resolve().parents[2]


def study(folder: Path, records: Sequence[RunRecord]) -> Path:
    for run in records:
        write_arm(folder, run, history=False)
    return folder


@pytest.fixture(scope="module")
def hilly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("outputs") / "hilly", [*search_records(hill()), *base_records([0.8])])


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("outputs") / "flat", search_records(plain))


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "conf"
    folder.mkdir()
    monkeypatch.setattr(optimum, "RULES", folder)
    return folder


def shown(report: OptimumReport, width: int = 120) -> str:
    stream = io.StringIO()
    render(report, Console(file=stream, width=width))
    return stream.getvalue()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on standard error."""
    assert optimum.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_json_holds_points_surface_and_optimum(hilly: Path) -> None:
    report = write_optimum(hilly)
    content = json.loads((hilly / OPTIMUM_JSON).read_text())
    assert content["fitted_on"] == "validation accuracy (%)" and content["axes"] == ["depth", "width", "resolution"]
    [found] = content["searches"]
    assert found["outcome"] == "optimum" and len(found["points"]) == len(DESIGN)
    best = found["optimum"]
    for low, share, high, true in zip(best["low"], best["shares"], best["high"], TOP, strict=True):
        assert low <= share <= high and low <= true <= high
    c = best["coefficients"]
    assert c["alpha"] * c["beta"] ** 2 * c["gamma"] ** 2 == pytest.approx(found["realised_budget"])
    d, w, r = best["shares"]
    terms = np.array([d, w, r, d * w, d * r, w * r])
    assert best["predicted_val_accuracy"] == pytest.approx(terms @ found["surface"]["coefficients"])
    assert report.files == (hilly / OPTIMUM_JSON, hilly / OPTIMUM_PNG)


def test_figure_is_drawn_for_every_outcome(hilly: Path, flat: Path, tmp_path: Path) -> None:
    few = study(tmp_path / "few", search_records(hill(), design=DESIGN[:4]))
    marks = {}
    for folder in (hilly, flat, few):
        write_optimum(folder)
        with Image.open(folder / OPTIMUM_PNG) as image:
            assert min(image.size) >= 900
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
        marks[folder] = int((np.abs(pixels - [0xD5, 0x5E, 0x00]).max(axis=1) < 12).sum())
    # The optimum's colour appears only where one is named.
    assert marks[hilly] > 100 and marks[flat] == marks[few] == 0


@pytest.mark.parametrize("width", [80, 120])
def test_table_shows_asked_and_realised_shares_accuracy_and_seeds(hilly: Path, width: int) -> None:
    text = shown(write_optimum(hilly), width)
    assert all(len(line) <= width for line in text.splitlines())
    for words in ("asked", "realised", "29/29/42", "±", "fitted", "Optimum at 2x", "decides nothing", "optimum.png"):
        assert words in text
    assert "base" not in text.split("The surface")[0].replace("base_", "")


def test_a_study_under_way_lists_what_is_missing(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", search_records(hill())[:14])
    write_status(folder / "late", "running")
    text = shown(write_optimum(folder))
    assert "Too few points/seeds" in text and "1 interrupted (late)" in text
    [found] = json.loads((folder / OPTIMUM_JSON).read_text())["searches"]
    assert found["surface"] is None and found["optimum"] is None


def test_pure_rules_and_compound_are_points(tmp_path: Path) -> None:
    names = {"d1-w0-r0": "depth", "d0-w1-r0": "width", "d0.29-w0.29-r0.42": "compound"}
    records = [dataclasses.replace(r, arm=names.get(r.arm, r.arm)) for r in search_records(hill())]
    [found] = write_optimum(study(tmp_path / "s", records)).searches
    assert set(names.values()) <= {point.name for point in found.points} and found.answer.outcome == "optimum"


def test_the_rule_that_is_written_is_a_rule(hilly: Path, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert optimum.main([str(hilly), "--write", "mine"]) == 0
    out = capsys.readouterr().out
    written = yaml.safe_load((rules / "mine.yaml").read_text())
    assert set(written) == {"name", "exponents", "source"}
    rule = Rule(**written)
    assert rule.name == "mine" and math.fsum(rule.exponents) == pytest.approx(1, abs=1e-9)
    best = json.loads((hilly / OPTIMUM_JSON).read_text())["searches"][0]["optimum"]["shares"]
    assert rule.exponents == pytest.approx(best, abs=1e-4)
    for words in ("study hilly", "budget 2x", "11 points", "33 runs", "seeds 0,1,2", "[0.", "code 0123abcd", "95 %"):
        assert words in rule.source
    assert "FORCED" not in rule.source
    command = next(line.strip() for line in out.splitlines() if "python -m src.run" in line)
    assert (
        "scaling=mine,depth,width,resolution,compound" in command and "seed=3,4,5" in command and "budget=2" in command
    )


def test_no_optimum_writes_no_rule_unless_forced(flat: Path, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused([str(flat), "--write", "mine"], capsys)
    assert "'flat'" in error and "--force" in error and not list(rules.iterdir())
    assert (flat / OPTIMUM_JSON).exists()
    assert optimum.main([str(flat), "--write", "mine", "--force"]) == 0
    assert "FORCED" in Rule(**yaml.safe_load((rules / "mine.yaml").read_text())).source


def test_without_a_surface_even_force_writes_nothing(
    tmp_path: Path, rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = study(tmp_path / "few", search_records(hill(), design=DESIGN[:4]))
    assert "no surface" in refused([str(few), "--write", "mine", "--force"], capsys)
    assert not list(rules.iterdir())


def test_a_rule_is_never_overwritten(hilly: Path, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rules / "Mine.yaml").write_text("precious")
    assert "Mine.yaml" in refused([str(hilly), "--write", "mine"], capsys)
    assert (rules / "Mine.yaml").read_text() == "precious" and len(list(rules.iterdir())) == 1


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a.b", "1st", "-x", "null", "True", "on", "inf", "a b", "ä", "a=1"]
)
def test_a_bad_name_is_refused_in_one_sentence(
    hilly: Path, rules: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "cannot name a rule" in refused([str(hilly), f"--write={name}"], capsys)
    assert not list(rules.iterdir())


def test_several_budgets_need_a_choice(tmp_path: Path, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four = search_records(hill((0.1, 0.1, 0.8)), budget=4.0, snapped_budget=4.0)
    folder = study(tmp_path / "both", [*search_records(hill()), *four])
    assert "--budget 2" in refused([str(folder), "--write", "mine"], capsys)
    assert "it has 2, 4" in refused([str(folder), "--write", "mine", "--budget", "3"], capsys)
    assert optimum.main([str(folder), "--write", "mine", "--budget", "4"]) == 0
    rule = Rule(**yaml.safe_load((rules / "mine.yaml").read_text()))
    assert "budget 4x" in rule.source and rule.exponents[2] > 0.6


def test_mistakes_in_the_path_and_in_the_options(
    tmp_path: Path, hilly: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "does not exist" in refused([str(tmp_path / "no")], capsys)
    assert "only the base" in refused([str(study(tmp_path / "b", base_records([0.8])))], capsys)
    assert "--write mine" in refused([str(hilly), "--force"], capsys)


def test_help_says_what_it_needs_and_what_it_writes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "src.optimum", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for words in ("VALIDATION", "--write NAME", "--force", "lack of fit", "optimum.png", "+sweep=coefficient_search"):
        assert words in done.stdout


def test_many_unfinished_arms_are_counted_and_a_few_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in search_records(hill(), seeds=2):
        write_arm(tmp_path / "s", run, history=False)
    for number in range(9):
        write_status(tmp_path / "s" / f"later-2x-seed{number}-00000000", "queued")
    assert optimum.main([str(tmp_path / "s")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "9 queued (later-2x-seed0-00000000, later-2x-seed1-00000000, later-2x-seed2-00000000, ...)" in told

"""A written report is recomputed: every file and every record, and an edit anywhere is named."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from mutations.world import first_of, innocent_study
from report.synthetic_study import arm_records, write_arm

from src.record import RunRecord, is_edited
from src.report.__main__ import main
from src.report.evidence import check_evidence
from src.report.verify import verify
from src.report.write import write_report

TEXTS = ("summary.md", "summary.csv", "summary.json", "report.html", "accuracy_vs_macs.csv", "learning_curves.svg")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study and its report; a test that changes them changes them back."""
    study = innocent_study(tmp_path_factory.mktemp("verify"))
    write_report(study)
    return study


def run(study: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main([str(study), "--verify"])
    return code, capsys.readouterr().out


def test_what_was_written_agrees_and_nothing_is_written(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    code, out = run(written, capsys)
    assert code == 0 and re.fullmatch(r"verified: [\d,]+ figures in 12 files of \S+, from 9 run\(s\)\n", out)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_any_edited_digit_is_found(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {name: (written / name).read_text() for name in TEXTS}
    lines = {}
    try:
        for name, text in kept.items():
            place = random.Random(name).choice([match.start() for match in re.finditer(r"\d", text)])
            digit = str((int(text[place]) + 1) % 10)
            (written / name).write_text(text[:place] + digit + text[place + 1 :])
            lines[name] = text[:place].count("\n") + 1
        code, out = run(written, capsys)
    finally:
        for name, text in kept.items():
            (written / name).write_text(text)
    assert code == 1 and out.count("(guard G14)") == len(TEXTS)
    for name, line in lines.items():
        assert f"{name}, line {line}: says " in out


def test_a_lost_a_foreign_and_a_repainted_file_are_found(written: Path) -> None:
    picture, table = written / "accuracy_vs_macs.png", written / "summary.csv"
    kept = picture.read_bytes(), table.read_bytes()
    try:
        picture.write_bytes(kept[0][:-20] + b"x" + kept[0][-19:])
        table.unlink()
        said = verify(written).differences
    finally:
        picture.write_bytes(kept[0])
        table.write_bytes(kept[1])
    assert said == (
        "accuracy_vs_macs.png is not the picture that the records give (guard G14)",
        "summary.csv is missing: the report has lost a file (guard G14)",
    )


def test_figures_of_another_matplotlib_are_not_compared_and_said(written: Path) -> None:
    summary, picture = written / "summary.json", written / "learning_curves.png"
    kept = summary.read_text(), picture.read_bytes()
    try:
        summary.write_text(re.sub(r"Matplotlib [\d.]+", "Matplotlib 0.1", kept[0]))
        picture.write_bytes(b"drawn otherwise")
        found = verify(written)
    finally:
        summary.write_text(kept[0])
        picture.write_bytes(kept[1])
    assert found.differences == () and len(found.unchecked) == 1
    assert "learning_curves.png: drawn by Matplotlib 0.1, this is Matplotlib" in found.unchecked[0]


def test_losses_curves_and_checkpoints_are_recomputed(tmp_path: Path) -> None:
    study = innocent_study(tmp_path)
    folder = first_of(study, "depth")
    record = RunRecord.read(folder / "record.json")
    write_report(study)
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"other")
    (first_of(study, "width") / "checkpoints" / "best.ckpt").unlink()
    lines = (folder / "history.csv").read_text().splitlines()
    changed = lines[-1].split(",")
    changed[2] = "0.5"  # training accuracy of the last epoch
    (folder / "history.csv").write_text("\n".join([*lines[:-1], ",".join(changed)]) + "\n")
    found = verify(study)
    said = " ".join(found.differences)
    assert f"{folder.name}/checkpoints/best.ckpt is not the one that was tested (guard G8)" in found.differences
    assert f"says last_train_accuracy={record.last_train_accuracy:.6g}, its files give 0.5 (guard G8)" in said
    assert [text for text in found.unchecked if "its checkpoint has been removed" in text]


def test_evidence_names_what_is_wrong_and_where(tmp_path: Path) -> None:
    study = innocent_study(tmp_path)
    folder = first_of(study, "depth")
    record = RunRecord.read(folder / "record.json")
    assert check_evidence({record: folder}) == {record: ()}
    moved = folder.rename(study / folder.name.replace("depth", "width").replace("seed0", "seed7"))
    (wrong,) = check_evidence({record: moved})[record]
    assert wrong.blocking and "holds the record of depth at 2x, seed 0" in wrong.text
    moved.rename(folder)
    with np.load(folder / "predictions.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["val_logits"] = arrays["val_logits"] * 2  # the same accuracy, another loss
    np.savez_compressed(folder / "predictions.npz", **arrays)
    (wrong,) = check_evidence({record: folder})[record]
    assert wrong.blocking and "is not what its record was made from" in wrong.text
    (folder / "predictions.npz").unlink()
    (missing,) = check_evidence({record: folder})[record]
    assert not missing.blocking and "cannot be recomputed" in missing.text


def test_a_record_is_sealed_and_older_ones_are_not(tmp_path: Path) -> None:
    (run,) = arm_records({"compound": [0.9]})
    path = write_arm(tmp_path, run) / "record.json"
    assert not is_edited(path) and RunRecord.read(path) == run
    path.write_text(path.read_text().replace('"classes": 10', '"classes": 100'))
    assert is_edited(path) and RunRecord.read(path).classes == 100
    values = json.loads(path.read_text())
    del values["seal"]
    path.write_text(json.dumps(values))
    assert not is_edited(path)


def test_a_study_without_a_report_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in arm_records({"compound": [0.9]}):
        write_arm(tmp_path / "s", record)
    assert main([str(tmp_path / "s"), "--verify"]) == 2
    assert "has no report; python -m src.report" in capsys.readouterr().err

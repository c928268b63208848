"""Reports of whole, partial and broken study folders."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from synthetic_study import arm_records, base_records, folder_name, write_arm, write_cam, write_status

from src.arm_folder import ArmLock
from src.record import METRICS, RunRecord
from src.report.__main__ import main
from src.report.declared import LOOKS_FILE
from src.report.figures import styles
from src.report.page import PAGE_FILE
from src.report.study import read_study
from src.report.write import FIGURES, SUMMARY_CSV, SUMMARY_JSON, SUMMARY_MD, Report, render, write_report
from src.verdict.cells import group

ACCURACIES = {"compound": [0.921, 0.924, 0.9225], "depth": [0.901, 0.902, 0.9], "width": [0.91, 0.905, 0.908]}


def records() -> list[RunRecord]:
    return [*arm_records(ACCURACIES), *base_records([0.89, 0.892, 0.888])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    study = tmp_path_factory.mktemp("outputs") / "whole"
    for run in records():
        write_arm(study, run, cam=run.seed == 0)
    return write_report(study)


def shown(report: Report, width: int) -> str:
    stream = io.StringIO()
    render(report, Console(file=stream, width=width))
    return stream.getvalue()


def summary(report: Report) -> dict:
    return json.loads((report.folder / SUMMARY_JSON).read_text())


def test_all_files_are_written_and_nothing_else(whole: Report) -> None:
    beside = {"accuracy_vs_macs.svg", "learning_curves.svg", *(name.replace(".png", ".csv") for name in FIGURES)}
    expected = {PAGE_FILE, SUMMARY_MD, SUMMARY_CSV, SUMMARY_JSON, *FIGURES, *beside}
    assert {path.name for path in whole.files} == expected
    assert {path.name for path in whole.folder.iterdir() if path.is_file()} == {*expected, LOOKS_FILE}
    for name in FIGURES:
        width, height = Image.open(whole.folder / name).size
        assert width >= 600 and height >= 400


def test_csv_holds_every_field_of_every_run(whole: Report) -> None:
    with (whole.folder / SUMMARY_CSV).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(records())
    for row in rows:
        stored = RunRecord.read(whole.folder / row["folder"] / "record.json").to_mapping()
        assert {name: str(value) for name, value in stored.items()} == {k: v for k, v in row.items() if k != "folder"}


def test_json_rows_are_means_over_seeds_in_order(whole: Report) -> None:
    content = summary(whole)
    assert [row["arm"] for row in content["rows"]] == ["base", "compound", "depth", "width"]
    row = content["rows"][1]
    accuracy = row["metrics"]["test_accuracy"]
    assert (row["n"], row["seeds"], row["macs_ratio"]) == (3, [0, 1, 2], 2.0)
    assert accuracy["label"] == METRICS["test_accuracy"].label
    assert accuracy["mean"] == pytest.approx(92.25)
    assert accuracy["half_width"] == pytest.approx(4.302653 * np.std([92.1, 92.4, 92.25], ddof=1) / np.sqrt(3))
    assert content["sentences"][0]["outcome"] == "supported"
    assert len(content["runs"]) == len(records())


def test_markdown_traces_each_run_and_links_what_exists(whole: Report) -> None:
    text = (whole.folder / SUMMARY_MD).read_text()
    assert "92.25 ±0.37" in text
    for name in FIGURES:
        assert f"({name})" in text
    for run in records():
        assert f"[{folder_name(run)}]({folder_name(run)}/record.json)" in text and run.config_hash in text
    assert "not extrapolated" in text
    for metric in ("macs", "params", "activations", "images_per_second"):
        assert METRICS[metric].label in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_shows_every_number_at_every_width(whole: Report, width: int) -> None:
    text = shown(whole, width)
    assert all(len(line) <= width for line in text.splitlines())
    for word in ("compound", "92.25 ±0.37", "1.31", "232.60", "2.000", "3.000", "812", "Supported", "activations"):
        assert word in text, word
    assert "…" not in text


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    for run in arm_records({"compound": [0.92], "depth": [0.9]}):
        write_arm(tmp_path / "s", run)
    report = write_report(tmp_path / "s")
    assert "±0" not in shown(report, 80) and "Not assessable" in shown(report, 80)
    assert summary(report)["rows"][0]["metrics"]["test_accuracy"]["half_width"] is None


def test_the_same_seed_twice_is_not_two_seeds(tmp_path: Path) -> None:
    [first, second] = arm_records({"compound": [0.92, 0.93]})
    write_arm(tmp_path / "s", first)
    write_arm(tmp_path / "s", dataclasses.replace(second, seed=0, config_hash="otherone"))
    report = write_report(tmp_path / "s")
    assert summary(report)["rows"][0]["n"] == 1
    assert summary(report)["rows"][0]["metrics"]["test_accuracy"]["half_width"] is None
    assert "not independent" in shown(report, 200)


def test_a_partial_sweep_is_reported_with_the_state_of_every_arm(tmp_path: Path) -> None:
    study = tmp_path / "partial"
    runs = records()
    write_arm(study, runs[0])
    write_status(study / "running-arm", "running")
    lock = ArmLock(study / "running-arm")
    assert lock.acquire()  # somebody is really at it
    write_status(study / "killed-arm", "running")
    write_status(
        study / "failed-arm", "failed", "Traceback (most recent call last):\n  ...\nRuntimeError: out of memory\n"
    )
    write_status(study / "lost-arm", "finished")
    write_status(study / "broken-arm", "finished")
    (study / "broken-arm" / "record.json").write_text('{"study": "x"')
    write_status(study / "listed-arm", "finished")
    (study / "listed-arm" / "record.json").write_text("[1, 2]")
    (study / "early-arm").mkdir()
    (study / "early-arm" / "config.yaml").write_text("seed: 0\n")
    (study / "garbled-arm").mkdir()
    (study / "garbled-arm" / "status.json").write_bytes(b"\xff\xfe[")
    (study / "wandb").mkdir()
    report = write_report(study)
    lock.release()
    states = {item["folder"]: item["state"] for item in summary(report)["unfinished"]}
    assert states == {
        "running-arm": "running",
        "killed-arm": "interrupted",
        "failed-arm": "failed",
        "lost-arm": "no record",
        "broken-arm": "broken record",
        "listed-arm": "broken record",
        "early-arm": "unknown",
        "garbled-arm": "unknown",
    }
    text = shown(report, 100)
    assert "failed-arm: failed (RuntimeError: out of memory)" in text
    assert all(name in text and name in (study / SUMMARY_MD).read_text() for name in states)


def test_a_complete_record_counts_whatever_its_process_did_later(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "s", records()[0])
    write_status(folder, "failed", "killed while uploading")
    report = write_report(tmp_path / "s")
    assert len(report.runs) == 1 and "is failed, but its record is complete" in shown(report, 200)


def test_broken_curves_and_maps_cost_a_warning_only(tmp_path: Path) -> None:
    study = tmp_path / "s"
    folders = [
        write_arm(study, run, cam=True) for run in arm_records({"compound": [0.92], "depth": [0.9], "width": [0.9]})
    ]
    (folders[0] / "history.csv").write_text("epoch,val_accuracy\n1,\n")
    curve = folders[1] / "history.csv"
    curve.write_text("".join(curve.read_text().splitlines(keepends=True)[:4]))
    (folders[0] / "cam.npz").write_bytes(b"PK not a zip")
    write_cam(folders[2], arm_records({"width": [0.9]})[0], indices=[9, 8, 7, 6, 5, 4])
    write_cam(folders[1], arm_records({"depth": [0.9]})[0])
    text = shown(write_report(study), 250)
    assert "has no readable history.csv" in text
    assert "history.csv holds 3 epochs of the record's 10" in text
    assert "cam.npz is unreadable" in text
    assert "explains other pictures" in text


def test_a_figure_with_nothing_to_show_is_not_left_stale(tmp_path: Path) -> None:
    study = tmp_path / "s"
    folder = write_arm(study, records()[0], cam=True)
    assert "cam_grid.png" in {path.name for path in write_report(study).files}
    (folder / "cam.npz").unlink()
    (folder / "history.csv").unlink()
    report = write_report(study)
    assert {path.name for path in report.files} & set(FIGURES) == {"accuracy_vs_macs.png"}
    assert not (study / "cam_grid.png").exists() and "cam_grid" not in (study / SUMMARY_MD).read_text()


def test_the_report_does_not_depend_on_the_order_of_folders(tmp_path: Path, whole: Report) -> None:
    """Folders renamed so that they are met in another order: the same rows, verdict and findings."""
    study = tmp_path / "whole"
    for rank, run in enumerate(reversed(records())):
        folder = write_arm(study, run, cam=run.seed == 0)
        folder.rename(study / f"{rank:02d}")
    mine, theirs = summary(write_report(study)), summary(whole)
    for content in (mine, theirs):
        for run in content["runs"]:
            del run["folder"]
    assert mine == theirs


def test_writing_again_changes_nothing(whole: Report) -> None:
    before = {path.name: path.read_bytes() for path in whole.files}
    again = write_report(whole.folder)
    assert {path.name: path.read_bytes() for path in again.files} == before


def test_unmatched_arms_are_drawn_and_refused(tmp_path: Path) -> None:
    for run in records():
        dear = dataclasses.replace(run, macs=int(run.macs * 1.3), price=run.macs * 1.3)
        write_arm(tmp_path / "s", dear if run.arm == "depth" else run)
    report = write_report(tmp_path / "s")
    assert "G3" in shown(report, 100) and "accuracy_vs_macs.png" in {path.name for path in report.files}


def test_an_arm_looks_the_same_in_every_study_of_the_same_arms() -> None:
    looks = styles(group(records()))
    assert list(looks) == ["base", "compound", "depth", "width"]
    assert len({(s.colour, s.marker) for s in looks.values()}) == 4
    assert looks == styles(group([r for r in records() if r.seed == 1]))


@pytest.mark.parametrize("make", ["missing", "file", "empty", "unfinished", "arm", "outputs"])
def test_a_wrong_path_is_one_sentence_and_exit_code_2(
    make: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "cifar10-2x"
    folder = write_arm(study, records()[0])
    paths = {
        "missing": tmp_path / "cifar10-2y",
        "file": tmp_path / "cifar10-2y",
        "empty": tmp_path / "cifar10-2y",
        "unfinished": tmp_path / "cifar10-2y",
        "arm": folder,
        "outputs": tmp_path,
    }
    path = paths[make]
    if make == "file":
        path.write_text("")
    if make in ("empty", "unfinished"):
        path.mkdir()
    if make == "unfinished":
        write_status(path / "depth-2x", "running")
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1
    assert ("depth-2x: interrupted" if make == "unfinished" else "cifar10-2x") in captured.err


def test_the_command_line_works_alone_without_torch_or_hydra(tmp_path: Path) -> None:
    study = tmp_path / "cifar10-2x"
    for run in arm_records({"compound": [0.92], "depth": [0.9]}):
        write_arm(study, run)
    code = (
        "import sys; from src.report.__main__ import main; rc = main([sys.argv[1]]); "
        "heavy = {'torch', 'hydra', 'omegaconf', 'wandb', 'pytorch_lightning', 'matplotlib.pyplot'} &"
        " set(sys.modules); "
        "sys.exit(rc or ('loaded ' + ', '.join(heavy) if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(study)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Not assessable" in done.stdout and f"  {study / SUMMARY_MD}\n" in done.stdout


def test_help_names_what_is_read_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(name in text for name in ("record.json", "cam.npz", PAGE_FILE, SUMMARY_MD, *FIGURES))


def test_hidden_folders_are_no_arms(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "s", records()[0])
    shutil.copytree(folder, tmp_path / "s" / ".trash")
    assert [arm.name for arm in read_study(tmp_path / "s")] == [folder.name]

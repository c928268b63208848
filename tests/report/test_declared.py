"""What a study has declared and what was read of it: written once, never lost, told in the report."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_study import arm_records, base_records, folder_name, write_arm, write_status

from src.record import RunRecord
from src.report.answers import read_answers
from src.report.declared import CLAIMS_FILE, LOOKS_FILE, declare, families, looks, remember
from src.report.evidence import check_evidence
from src.report.study import pending, read_study
from src.report.write import SUMMARY_JSON, SUMMARY_MD, render, write_report
from src.verdict.claims import DEFAULT, PRIMARY, Claim, Family
from src.verdict.looks import LEVELS, PlannedRun

OTHER = Claim("width", ("depth",), 0.2)
CALM = {"compound": [0.921, 0.924, 0.9225], "depth": [0.901, 0.902, 0.9]}


def summary(study: Path) -> dict:
    return json.loads((study / SUMMARY_JSON).read_text())


def test_a_study_without_a_declaration_has_the_default_family(tmp_path: Path) -> None:
    assert families(tmp_path) == (DEFAULT,)


def test_what_is_declared_before_the_first_run_is_read_back(tmp_path: Path) -> None:
    study = tmp_path / "s"
    declare(study, (PRIMARY, OTHER))
    before = (study / CLAIMS_FILE).read_text()
    declare(study, (OTHER, PRIMARY))
    assert families(study) == (Family((PRIMARY, OTHER)),)
    assert (study / CLAIMS_FILE).read_text() == before


def test_a_claim_that_comes_after_finished_runs_is_a_family_of_its_own_and_says_so(tmp_path: Path) -> None:
    study = tmp_path / "s"
    declare(study, (PRIMARY,))
    for run in arm_records({**CALM, "width": [0.911, 0.912, 0.913]}):
        write_arm(study, run)
    write_status(study / "compound-2x-seed9-0123abcd", "failed")
    declare(study, (OTHER,))
    declare(study, (OTHER, PRIMARY))
    assert families(study) == (DEFAULT, Family((OTHER,), after=9))
    write_report(study)
    texts = [sentence["text"] for sentence in summary(study)["sentences"]]
    assert len(texts) == 2 and "declared" not in texts[0]
    assert "declared after 9 runs had finished: width beats depth" in texts[1]
    assert texts[1] in (study / SUMMARY_MD).read_text().replace("**", "")


def test_the_default_family_was_settled_before_any_study(tmp_path: Path) -> None:
    """A study of a version that declared nothing, to which runs are added now."""
    study = tmp_path / "s"
    write_arm(study, arm_records(CALM)[0])
    declare(study, (PRIMARY,))
    assert families(study) == (DEFAULT,)


def test_the_default_family_comes_late_where_another_was_declared(tmp_path: Path) -> None:
    study = tmp_path / "s"
    declare(study, (OTHER,))
    write_arm(study, arm_records(CALM)[0])
    declare(study, (PRIMARY,))
    assert families(study) == (Family((OTHER,)), Family((PRIMARY,), after=1))


@pytest.mark.parametrize("content", ["{", "{}", '[{"claims": 1}]', '[{"finished": 0, "claims": [{"subject": "x"}]}]'])
def test_a_damaged_declaration_is_no_empty_one(content: str, tmp_path: Path) -> None:
    (tmp_path / CLAIMS_FILE).write_text(content)
    for ask in (families, lambda folder: declare(folder, (PRIMARY,))):
        with pytest.raises(ValueError, match=CLAIMS_FILE):
            ask(tmp_path)
    (tmp_path / LOOKS_FILE).write_text(content)
    with pytest.raises(ValueError, match=LOOKS_FILE):
        looks(tmp_path)


def test_planned_runs_are_those_that_may_still_finish(tmp_path: Path) -> None:
    study = tmp_path / "s"
    for seed, state in enumerate(("queued", "interrupted", "failed", "timeout", "finished")):
        write_status(study / f"slow_res-2.5x-seed{seed}-0123abcd", state)
    write_status(study / "my-own-4x-seed12-0123abcd", "queued")
    write_status(study / "notes", "queued")
    run = arm_records(CALM)[0]
    write_arm(study, run)
    assert folder_name(run) == "compound-2x-seed0-" + run.config_hash
    assert pending(read_study(study)) == (
        PlannedRun("my-own", 4.0, 12),
        PlannedRun("slow_res", 2.5, 0),
        PlannedRun("slow_res", 2.5, 1),
    )


def queue(study: Path, seeds: range) -> list[Path]:
    """Planned runs of both arms."""
    folders = [study / f"{arm}-2x-seed{seed}-0123abcd" for arm in CALM for seed in seeds]
    for folder in folders:
        write_status(folder, "queued")
    return folders


def test_a_running_sweep_is_read_early_once_and_the_end_pays_for_it(tmp_path: Path) -> None:
    study = tmp_path / "s"
    for run in arm_records(CALM):
        write_arm(study, run)
    folders = queue(study, range(3, 6))
    write_report(study)
    [early] = summary(study)["sentences"]
    assert early["reading"]["look"]["level"] == LEVELS[0] and "after 3 of 6 planned seeds" in early["text"]
    once = (study / LOOKS_FILE).read_text()
    write_report(study)
    assert (study / LOOKS_FILE).read_text() == once and len(looks(study)) == 1
    assert all(row["best"] is None for row in summary(study)["standings"][0]["rows"])
    for folder in folders:
        (folder / "status.json").unlink()
        folder.rmdir()
    for run in arm_records({arm: [*values, *values] for arm, values in CALM.items()}):
        if run.seed > 2:
            write_arm(study, dataclasses.replace(run, test_accuracy=run.test_accuracy + 1e-4))
    write_report(study)
    [end] = summary(study)["sentences"]
    assert end["reading"]["look"]["level"] == pytest.approx(0.05 - LEVELS[0]) and end["reading"]["earlier"] == 1
    assert end["outcome"] == "supported" and len(looks(study)) == 2


def test_a_sweep_that_has_hardly_begun_says_when_it_will_be_read(tmp_path: Path) -> None:
    study = tmp_path / "s"
    for run in arm_records({arm: values[:2] for arm, values in CALM.items()}):
        write_arm(study, run)
    queue(study, range(2, 6))
    write_report(study)
    [sentence] = summary(study)["sentences"]
    assert sentence["outcome"] == "not assessable"
    assert "4 of the 12 planned runs of these arms have finished; it is read after 3 and 5 seeds" in sentence["text"]
    assert looks(study) == ()


def test_looks_are_kept_once(tmp_path: Path) -> None:
    study = tmp_path / "s"
    for run in arm_records(CALM):
        write_arm(study, run)
    taken = write_report(study).verdict.looks
    remember(study, taken)
    assert looks(study) == taken and len(taken) == 1


def predictions(folder: Path, run: RunRecord, **changes: np.ndarray) -> None:
    """predictions.npz as an arm leaves it, right as often as its record says."""
    random = np.random.default_rng(run.seed + 100 * len(run.arm))
    labels = np.arange(1000) % 10
    right = np.zeros(1000, bool)
    right[random.permutation(1000)[: round(1000 * run.test_accuracy)]] = True
    logits = np.eye(10, dtype=np.float32)[np.where(right, labels, (labels + 1) % 10)]
    np.savez_compressed(folder / "predictions.npz", **{"test_labels": labels, "test_logits": logits} | changes)


def test_stored_predictions_give_the_second_interval(tmp_path: Path) -> None:
    study = tmp_path / "s"
    runs = arm_records(CALM)
    for run in runs:
        whole = dataclasses.replace(run, test_accuracy=round(run.test_accuracy, 3))
        predictions(write_arm(study, whole), whole)
    report = write_report(study)
    [sentence] = summary(study)["sentences"]
    low, high = sentence["comparisons"][0]["new_pictures"]
    assert low < sentence["comparisons"][0]["low"] and sentence["comparisons"][0]["high"] < high
    stream = io.StringIO()
    render(report, Console(file=stream, width=400))
    assert f"[{low:+.2f}, {high:+.2f}] for new pictures" in stream.getvalue()
    assert f"[{low:+.2f}, {high:+.2f}] for new pictures" in (study / SUMMARY_MD).read_text()


def test_clusters_are_used_where_they_are_stored(tmp_path: Path) -> None:
    found = []
    for name, changes in (("a", {}), ("b", {"test_clusters": np.arange(1000) // 20})):
        for run in arm_records(CALM):
            whole = dataclasses.replace(run, test_accuracy=round(run.test_accuracy, 3))
            predictions(write_arm(tmp_path / name, whole), whole, **changes)
        write_report(tmp_path / name)
        found.append(summary(tmp_path / name)["sentences"][0]["comparisons"][0]["new_pictures"])
    assert found[0] != found[1]


def test_runs_from_before_clusters_were_stored_get_those_of_the_same_data(tmp_path: Path) -> None:
    values = {"compound": [0.92, 0.92], "depth": [0.9, 0.9]}
    runs = arm_records(values)
    old, new, *others = runs
    others[0] = dataclasses.replace(others[0], data_fingerprint="other data")
    folders = {run: write_arm(tmp_path / "s", run) for run in (old, new, *others)}
    for run, folder in folders.items():
        predictions(folder, run, **({"test_clusters": np.arange(1000) // 5} if run in (new, others[1]) else {}))
    found, odd = read_answers(folders)
    assert not odd and found[others[0]].clusters is None
    for run in (old, new, others[1]):
        assert found[run].clusters is not None and found[run].clusters.tolist() == (np.arange(1000) // 5).tolist()
        assert (found[run].pictures == found[new].pictures) and found[run].pictures != found[others[0]].pictures
    predictions(folders[others[1]], others[1], test_clusters=np.arange(1000) // 10)
    assert read_answers(folders)[0][others[1]].pictures != found[new].pictures


def test_predictions_of_another_run_are_named_and_not_used(tmp_path: Path) -> None:
    first, second, third, *_ = arm_records({"compound": [0.92, 0.93, 0.94], "depth": [0.9]})
    folders = {run: write_arm(tmp_path / "s", run) for run in (first, second, third)}
    predictions(folders[first], dataclasses.replace(first, test_accuracy=0.5))
    (folders[second] / "predictions.npz").write_bytes(b"PK no zip")
    predictions(folders[third], third, test_clusters=np.arange(7))
    answers, odd = read_answers(folders)
    assert answers == {} and [finding.guard for finding in odd] == ["G8"] * 2
    texts = " ".join(map(str, odd))
    assert "is unreadable" in texts and "differ in length" in texts
    (wrong,) = check_evidence({first: folders[first]})[first]
    assert wrong.blocking and "gives 50.00 % of test where the record says 92.00 %" in wrong.text


def test_probabilities_and_slopes_stand_beside_the_sentences(tmp_path: Path) -> None:
    study = tmp_path / "s"
    higher = {arm: [value + 0.01 for value in values] for arm, values in CALM.items()}
    for run in [*arm_records(CALM), *arm_records(higher, 4.0), *base_records([0.89, 0.892, 0.888])]:
        write_arm(study, run)
    report = write_report(study)
    [found] = summary(study)["standings"]
    assert found["setting"] == "b0 on cifar10"
    assert [(row["arm"], row["budget"]) for row in found["rows"]] == [(cell.name, cell.budget) for cell in report.cells]
    assert [slope["arm"] for slope in found["slopes"]] == ["compound", "depth"]
    stream = io.StringIO()
    render(report, Console(file=stream, width=80))
    text, written = stream.getvalue(), (study / SUMMARY_MD).read_text()
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("  /"))
    for words in ("P(best of its budget) (%)", "P(on the frontier) (%)"):
        assert words in written and words.split()[0] in text
    assert "compound: +1.00 [" in written and "one slope for all arms: F test, p=" in written
    share = next(row["best"] for row in found["rows"] if row["arm"] == "compound" and row["budget"] == 4)
    assert f"| compound | 4 | {100 * share:.0f} |" in written

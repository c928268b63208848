"""`python -m src.plan`: what it prints and keeps, what it takes from the command line, and how it reckons."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from src import config, plan, rehearsal
from src.command import start
from src.config import Study
from src.data.module import ImageDataModule
from src.data.options import DataOptions
from src.messages import UserMistake
from src.planning import plan as plan_arm
from src.prospect import Wishes
from src.record import RunRecord
from src.rehearsal import (
    WANDB_SECONDS,
    Rehearsal,
    Timing,
    Timings,
    forecast_arm,
    measure,
    rehearse,
    run_lengths,
)
from src.report.forecast import PLAN_FILE, Forecast, score
from tests.report.synthetic_pilot import write_runs

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "recipe.epochs=2", "recipe.batch_size=16", "data.clutter.train=96", "data.clutter.val=40", "data.clutter.test=60",
    "cam_pictures=2", "cam_scores=0", "tracking=none", "hardware.kernels=plain", "hardware.precision=32-true",
    "hardware.threads=1",
)  # fmt: skip
SIZES = {"train": 96, "val": 40, "test": 60}


class Printed(NamedTuple):
    """What a program left behind."""

    code: int
    out: str
    err: str


def call(*arguments: str) -> Printed:
    """The program, in this process; a rehearsal has one of its own."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["plan", *arguments]),
        mock.patch("src.study.run_jobs", side_effect=AssertionError("an arm was started")),
        mock.patch.dict(os.environ, {"WANDB_MODE": "offline"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = plan.main()
    return Printed(code, out.getvalue(), err.getvalue())


def studies_of(*arguments: str) -> list[Study]:
    """What a command line asks for."""
    composed: list[Any] = []
    with mock.patch.object(sys, "argv", ["plan", *arguments]):
        assert start(lambda configs: [composed.extend(configs)] and [0] * len(configs)) == 0
    return [config.parse(one) for one in composed]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for outputs, and a machine that remembers nothing yet."""
    folder = tmp_path_factory.mktemp("plan")
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder / "cache")}):
        yield folder


def command(folder: Path, *more: str) -> tuple[str, ...]:
    return ("-m", "scaling=base,width,compound", "seed=0,1", *SMALL, f"outputs={folder / 'outputs'}", "study=s", *more)


@pytest.fixture(scope="module")
def planned(elsewhere: Path) -> Printed:
    """A small plan, its rehearsal a process of its own."""
    return call(*command(elsewhere, "--effect", "0.5", "--sigma", "0.2", "--seconds", "1"))


def test_a_plan_is_printed_and_kept_and_nothing_is_trained(planned: Printed, elsewhere: Path) -> None:
    assert planned.code == 0, planned.err
    assert "Study s: 5 arms" in planned.out or "Study s: 6 arms" in planned.out
    kept = Forecast.read(elsewhere / "outputs" / "s")
    assert len(kept.arms) == 6 and {arm.arm for arm in kept.arms} == {"base", "width", "compound"}
    assert [path.name for path in (elsewhere / "outputs" / "s").iterdir()] == [PLAN_FILE]
    for arm in kept.arms:
        assert arm.steps == 2 * 6 and arm.train_macs == 3 * arm.macs * 12 * 16
        assert 0.5 < arm.seconds < arm.process_seconds < 200
        assert arm.seconds > arm.steps * arm.step_seconds > 0
        assert arm.memory_bytes > 2**26 and arm.disk_bytes > 4 * 50_000  # weights of float32 at least
    total = math.fsum(arm.process_seconds for arm in kept.arms)
    assert kept.sweep_seconds == pytest.approx(kept.fixed_seconds + total) and kept.gpu_hours == 0
    assert kept.hardware.endswith("32-true, plain kernels, 1 thread(s)")


def test_seeds_and_the_smaller_design_are_told(planned: Printed) -> None:
    text = " ".join(planned.out.split())
    assert "Declared: compound against width. 1 comparison(s) at a budget are corrected together" in text
    assert "0.5 pp takes 5 seeds an arm" in text  # the table of one comparison: sigma 0.2
    assert "the claims' arms only, 5 seeds, 10 runs" in text and "without base, which no claim names" in text
    assert "With 2 seed(s) there is no verdict at all" in text
    assert re.search(r"as asked +3 +2 +6 .* no verdict", planned.out)
    assert "nothing here says that the effect would be the same" in text


def test_what_was_timed_is_remembered_whatever_the_epochs_and_seeds(planned: Printed, elsewhere: Path) -> None:
    before = Forecast.read(elsewhere / "outputs" / "s")
    changed = [word.replace("epochs=2", "epochs=5").replace("seed=0,1", "seed=3") for word in command(elsewhere)]
    with mock.patch("src.rehearsal._run", side_effect=AssertionError("timed again")):
        again = call(*changed, "--seconds", "1", "study=t")
        assert again.code == 2 and "study twice" in again.err
        again = call(*[word for word in changed if word != "study=s"], "--seconds", "1", "study=t")
    assert again.code == 0, again.err
    after = Forecast.read(elsewhere / "outputs" / "t")
    assert len(after.arms) == 3 and all(arm.steps == 30 for arm in after.arms)
    assert {arm.step_seconds for arm in after.arms} == {arm.step_seconds for arm in before.arms}
    with (
        mock.patch("src.rehearsal._run", side_effect=AssertionError("timed again")),
        pytest.raises(AssertionError),
    ):
        measure(studies_of(*command(elsewhere))[:1], [SIZES], 1.0, fresh=True)


def test_a_pilot_gives_the_noise_and_where_it_is_no_pilot_is_said(planned: Printed, elsewhere: Path) -> None:
    write_runs(elsewhere / "pilot", {"depth": {0: 0.8, 1: 0.8, 2: 0.8}}, 1000)
    done = call(*command(elsewhere, "--pilot", str(elsewhere / "pilot"), "--effect", "2", "--seconds", "1"))
    text = " ".join(done.out.split())
    assert done.code == 0, done.err
    assert "upper 80 % limit" in text and "with 2 degrees of freedom" in text and "2 pp takes" in text
    assert "the pilot had network b0 and this sweep has efficientnet_nano" in text
    assert "the pilot had epochs 10 and this sweep has 2" in text


BAD = [
    (("--effect", "0.5"), "--effect 0.5 needs the noise between seeds, add --sigma PP or --pilot"),
    (("--effect", "0", "--sigma", "1"), "--effect 0 must be a positive number"),
    (("--effect", "nan", "--sigma", "1"), "--effect nan must be a positive number"),
    (("--effect", "much", "--sigma", "1"), "argument --effect: invalid float value: 'much'"),
    (("--sigma", "-0.3"), "--sigma -0.3 must be a positive number"),
    (("--sigma", "1", "--pilot", "outputs/x"), "--sigma and --pilot both say"),
    (("--power", "80"), "--power 80 must lie in 0.5 to 0.99"),
    (("--pictures", "many"), "argument --pictures: invalid"),
    (("--pictures", "0,5"), "--pictures 0,5 must be two numbers from 2 on"),
    (("--seconds", "0"), "--seconds 0 must lie in 1 to 3600"),
    (("--pilot",), "argument --pilot: expected one argument"),
    (("--efect", "1"), "--efect"),
    (("scaling=dpeth",), "scaling=dpeth is unknown, did you mean depth"),
    (("--pilot", "nowhere"), "nowhere does not exist"),
    (("recipe.batch_size=5000", "data.clutter.train=100"), "recipe.batch_size=5000 is more than the 100 pictures"),
    (("cam_pictures=99", "data.clutter.val=20"), "cam_pictures=99 is more than the 20 pictures of val"),
    (("data=imagenet", "network=efficientnet_b0"), "imagenet has is not known without data.root; give --pictures"),
]


@pytest.mark.parametrize(
    ("arguments", "told"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with mock.patch("src.rehearsal._run", side_effect=AssertionError("rehearsed")):
        done = call(*arguments)
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and told in done.err
    assert not any(tmp_path.iterdir())


def test_flags_stand_anywhere_and_the_rest_is_hydras() -> None:
    wishes, rest = plan.parse(
        ["-m", "--effect", "0.5", "scaling=depth", "--sigma=0.3", "seed=0,1", "--pictures", "9,8"]
    )
    assert wishes == Wishes(effect=0.5, sigma=0.3, pictures=(9, 8)) and rest == ["-m", "scaling=depth", "seed=0,1"]


def test_help_is_told_without_a_plan() -> None:
    done = call("--help")
    assert done.code == 0 and "--pilot PATH" in done.out and "Exit code: 0, or 2" in done.out


def test_another_launcher_is_handed_nothing(planned: Printed, elsewhere: Path) -> None:
    with mock.patch("hydra._internal.core_plugins.basic_launcher.BasicLauncher.launch", side_effect=AssertionError):
        done = call(*command(elsewhere, "--seconds", "1", "hydra/launcher=basic"))
    assert done.code == 0, done.err
    assert "these arms will run elsewhere" in done.out


TIMING = Timing(2.0, 0.5, 0.25, 0.1, 0.01, 3000, "all at once", 500, 2.0, 9, 16)
TIMINGS = Timings(3.0, 1.0, "cpu", "words", False, 0.1, "now", 5.0, (TIMING,))


def test_a_run_is_reckoned_by_hand() -> None:
    (study,) = studies_of("scaling=width", *SMALL)
    arm = plan_arm(study)
    found = forecast_arm(arm, TIMING, TIMINGS, SIZES, "disabled")
    # 12 steps, one more epoch, validation twice while training and once after, the test split once
    by_hand = 2.0 + 12 * 0.1 + 1 * 0.5 + 0.25 + (2 * 40 + 40 + 60) * 0.01
    assert found.seconds == pytest.approx(by_hand) and found.process_seconds == pytest.approx(by_hand + 4.0)
    assert found.disk_bytes == 500 + 100 * 2 and found.memory_bytes == 3000
    assert found.train_macs == 3 * arm.scaled.cost.macs * 12 * 16
    logged = forecast_arm(arm, TIMING, TIMINGS, SIZES, "offline")
    assert logged.seconds == pytest.approx(by_hand + WANDB_SECONDS["offline"])
    assert (
        found.basis,
        forecast_arm(arm, dataclasses.replace(TIMING, pictures=4), TIMINGS, SIZES, "disabled").basis,
    ) == (
        "9 steps",
        "9 steps of 4 pictures",
    )


@pytest.mark.parametrize("more", [(), ("budget.currency=train_macs", "budget.network=1.5"), ("recipe.batch_size=60",)])
def test_lengths_are_those_of_the_real_run(more: tuple[str, ...], tmp_path: Path) -> None:
    (study,) = studies_of(
        "scaling=width",
        *(word for word in SMALL if not any(word.partition("=")[0] in given for given in more)),
        f"+data.cache={tmp_path}",
        *more,
    )
    arm = plan_arm(study)
    data = ImageDataModule(study.data, arm.scaled.resolution, study.recipe.batch_size, 8, 0)
    data.setup()
    assert data.sizes == SIZES
    assert run_lengths(arm, SIZES) == data.cut_run(max(1, round(arm.epochs * data.steps_per_epoch)))


def test_the_mean_of_what_slots_timed() -> None:
    other = dataclasses.replace(TIMINGS, start=5.0, arms=(dataclasses.replace(TIMING, step=0.3),))
    found = rehearsal._combine([TIMINGS, other])
    assert (found.start, found.arms[0].step, found.arms[0].memory_bytes) == (4.0, pytest.approx(0.2), 3000)
    assert Timings.from_mapping(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_what_noise_took_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (study,) = studies_of("scaling=base", *SMALL)
    answers = iter([dataclasses.replace(TIMINGS, noise=True), TIMINGS])
    monkeypatch.setattr(rehearsal, "_run", lambda *asked: [next(answers)])
    assert [measure([study], [SIZES], 1.0).noise for _ in range(3)] == [True, False, False]


def test_a_damaged_memory_is_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (study,) = studies_of("scaling=base", *SMALL)
    answers = iter([TIMINGS, dataclasses.replace(TIMINGS, start=9.0)])
    monkeypatch.setattr(rehearsal, "_run", lambda *asked: [next(answers)])
    assert measure([study], [SIZES], 1.0).start == 3.0
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(kept.read_text()[:40])
    assert measure([study], [SIZES], 1.0).start == 9.0


def test_what_is_too_long_is_reckoned_by_its_macs(tmp_path: Path) -> None:
    studies = studies_of("-m", "scaling=base,compound", *SMALL, "budget=4", f"+data.cache={tmp_path}")
    found = rehearse(Rehearsal(tuple(studies), (SIZES, SIZES), 0.0, tmp_path / "unused", 0.0), tmp_path)
    base, compound = found.arms
    arms = [plan_arm(study) for study in studies]
    ratio = arms[1].scaled.cost.macs / arms[0].scaled.cost.macs
    assert base.steps > 0 and compound.steps == 0 and 3.5 < ratio < 4.5
    assert compound.step == pytest.approx(ratio * base.step) and compound.picture == pytest.approx(ratio * base.picture)
    assert compound.memory_bytes > base.memory_bytes
    assert forecast_arm(arms[1], compound, found, SIZES, "disabled").basis == "reckoned by its MACs"
    assert not found.noise


def test_pictures_that_are_not_here_are_noise(tmp_path: Path) -> None:
    declared = DataOptions("later", "folder", classes=3, stored_pixels=20, cache=str(tmp_path), val_fraction=0.25)
    (study,) = studies_of("scaling=base", *SMALL)
    study = dataclasses.replace(study, data=declared)
    found = rehearse(Rehearsal((study,), (SIZES,), 0.0, tmp_path / "unused", 0.0), tmp_path)
    assert found.noise and found.arms[0].step > 0 and found.arms[0].steps > 0
    assert found.arms[0].picture_bytes > 4 * 3  # logits of three classes


def test_noise_stands_in_for_what_was_declared(tmp_path: Path) -> None:
    (study,) = studies_of("scaling=base", *SMALL)
    declared = DataOptions("later", "folder", classes=700, stored_pixels=20, val_fraction=0.25)
    arm = plan_arm(dataclasses.replace(study, data=declared))
    options, noise = rehearsal._pictures(arm, 8, 9, {"train": 10**6, "val": 5000, "test": 1}, tmp_path)
    assert noise and options.memory_limit == declared.memory_limit and arm.scaled.base.classes == 700
    data = ImageDataModule(options, 16, 8, 8, 0)
    data.prepare_data()
    data.setup()
    assert data.sizes == {"train": 8 * rehearsal.READ_BATCHES, "val": 9, "test": 2} and data.facts.native_pixels == 20
    large, _ = rehearsal._pictures(arm, 8, 9, {"train": 10**7, "val": 5000, "test": 1}, tmp_path)
    assert large.memory_limit == "0B"  # such a set would be decoded anew for each batch


def test_pictures_that_are_here_are_read_as_an_arm_reads_them(tmp_path: Path) -> None:
    (study,) = studies_of("scaling=base", *SMALL)
    arm = plan_arm(study)
    options, noise = rehearsal._pictures(arm, 16, 12, SIZES, tmp_path)
    assert not noise and options == dataclasses.replace(study.data, download=False, val_limit=12)
    assert rehearsal._pictures(arm, 16, 40, SIZES, tmp_path)[0].val_limit is None
    assert list(tmp_path.iterdir()) == []


def test_an_arm_that_would_be_refused_refuses_the_plan(elsewhere: Path) -> None:
    (study,) = studies_of("scaling=base", *SMALL, "hardware.accelerator=cpu", "hardware.devices=16")
    with pytest.raises(UserMistake) as refused:
        measure([study], [SIZES], 1.0)
    assert "use recipe.batch_size=32 or more" in refused.value.message


def test_a_rehearsal_that_breaks_is_no_mistake_of_the_user(elsewhere: Path) -> None:
    (study,) = studies_of("scaling=base", *SMALL)
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1.*KeyError"):
        measure([study], [{"train": 96}], 1.0)


@pytest.mark.slow  # trains the arms of a sweep, twenty seconds
def test_a_forecast_is_near_what_a_sweep_takes(tmp_path: Path) -> None:
    from tests.test_end_to_end import run

    arguments = (
        "-m", "scaling=width,compound", "recipe.epochs=3", "data.clutter.train=1280", "tracking=none", "study=s",
        "hardware.kernels=plain", "hardware.precision=32-true",
    )  # fmt: skip
    outputs = tmp_path / "outputs"
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(tmp_path / "cache")}):
        assert run(*arguments, f"outputs={outputs}", outputs=outputs, module="src.plan").returncode == 0
        assert run(*arguments, outputs=outputs).returncode == 0
    records = {path.parent.name: RunRecord.read(path) for path in (outputs / "s").glob("*/record.json")}
    found = score(Forecast.read(outputs / "s"), records)
    assert found is not None and len(found.runs) == 2 and found.missing == 0
    assert found.worst < 0.6, found  # other work on the machine may double a run

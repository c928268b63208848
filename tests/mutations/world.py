"""What the mutants are let loose on: one arm that is really trained in this process, and one written study.

Both are innocent as they are (`test_mutations.py` shows it), so that what is caught is the mutant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from PIL import Image
from report.synthetic_study import record, write_cam, write_status
from scipy.special import log_softmax

from src import arm as arm_module
from src import config
from src.launch.hydra_launcher import register
from src.messages import UserMistake
from src.planning import Arm, notes, plan_all
from src.record import RunRecord, digest_arrays
from src.report.verify import verify
from src.report.write import Report, write_report
from src.training.checkpoints import StopRequest
from src.training.hardware import resolve
from src.verdict.cells import group
from src.verdict.guards import check

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
CLUTTER = ("data.clutter.train=128", "data.clutter.val=40", "data.clutter.test=40")
TINY = (
    "recipe.epochs=1",
    "cam_pictures=2",
    "cam_scores=0",
    "tracking=none",
    "hardware=cpu",
    "hardware.kernels=plain",
    "hardware.precision=32-true",
    "hardware.threads=1",
)
PLANNED, TRAINED, RECORDED = "before training", "before the record", "in the report"


@dataclass(frozen=True)
class Caught:
    """Where a mutant was stopped or named, and in which words."""

    where: str
    said: str


@dataclass
class World:
    """Ways to try a mutant, each with a folder of its own."""

    folder: Path
    patches: list[Any] = field(default_factory=list)

    def patch(self, target: str, new: Any) -> None:
        """Plant a fault in the code: `target` is the dotted place in which it is looked up."""
        self.patches.append(mock.patch(target, new))

    def plan(self, *overrides: str) -> list[Arm]:
        """Arms of a command, planned; commas in `scaling` and `seed` sweep."""
        single, swept = [o for o in overrides if not _sweeps(o)], [o for o in overrides if _sweeps(o)]
        combined: list[list[str]] = [[]]
        for override in swept:
            key, _, values = override.partition("=")
            combined = [[*one, f"{key}={value}"] for one in combined for value in values.split(",")]
        register(lambda configs: [0] * len(configs), ROOT / "sweeps")
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = [compose("config", [*single, *one, f"outputs={self.folder}"]) for one in combined]
        return plan_all([config.parse(one) for one in composed])

    def refused(self, *overrides: str, hardware: bool = False) -> Caught:
        """What a command is refused with, before anything trains."""
        try:
            with self._planted():
                arms = self.plan(*overrides)
                if hardware:
                    resolve(arms[0].study.hardware)
        except ValueError as error:
            return Caught(PLANNED, str(error))
        raise AssertionError("nothing was refused")

    def planned(self, *overrides: str) -> Caught:
        """What is said beside a plan."""
        with self._planted():
            return Caught(PLANNED, "; ".join(notes(self.plan(*overrides))))

    def trains(self, *overrides: str, clutter: bool = True) -> Caught:
        """What one arm's program says when it is run with the planted faults: an error, or what is found in its record.

        clutter: whether the pictures are the embedded ones.
        """
        own = CLUTTER if clutter else ()
        (chosen,) = self.plan("study=mutant", *TINY, *own, *overrides)
        chosen.folder.mkdir(parents=True, exist_ok=True)
        began: list[bool] = []
        fit = pl.Trainer.fit

        def watched(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            began.append(True)
            fit(trainer, *args, **kwargs)

        attempt = arm_module.Attempt(1, datetime.now(UTC).isoformat(), time.perf_counter(), arm_module.code_revision())
        with mock.patch("pytorch_lightning.Trainer.fit", watched), self._planted():
            try:
                record = arm_module.run_arm(
                    chosen, resolve(chosen.study.hardware), chosen.folder, attempt, StopRequest()
                )
            except (Exception, UserMistake) as error:
                assert not (chosen.folder / "record.json").exists()
                return Caught(TRAINED if began else PLANNED, getattr(error, "message", str(error)))
        assert record is not None
        return Caught(RECORDED, "; ".join(f.text for f in check(group([record]))))

    def report(self, change: Callable[[Path], None] = lambda study: None, *, drawn: bool = False) -> Report:
        """The report of the innocent study after a change of its folder; with its page and figures if they are wanted,
        which take longer than all else."""
        study = innocent_study(self.folder)
        change(study)
        with contextlib.ExitStack() as stack:
            if not drawn:
                stack.enter_context(mock.patch("src.report.write.figure_files", lambda material: {}))
                stack.enter_context(mock.patch("src.report.write.page", lambda summary, material: ""))
            return write_report(study)

    def named(self, change: Callable[[Path], None], guard: str, *, blocks: bool) -> Caught:
        """What the report says of a changed study under one guard; a blocked claim is told so in its sentence."""
        report = self.report(change)
        found = [f for f in report.findings if f.guard == guard and (f.blocking or not blocks)]
        assert found, [str(f) for f in report.findings]
        written = " ".join((report.folder / "summary.md").read_text().replace("\\", "").split())
        assert found[0].text in written
        if blocks:
            assert {s.outcome for s in report.verdict.sentences if "compound" in str(s)} >= {"not assessable"}
        return Caught(RECORDED, f"{guard}: {found[0].text}")

    def edited(self, name: str, old: str, new: str) -> Caught:
        """What the verification says of a written report in which one text was replaced by another."""
        study = innocent_study(self.folder)
        write_report(study)
        path = study / name
        text = path.read_text()
        assert old in text, f"{name} has no {old!r}"
        path.write_text(text.replace(old, new, 1))
        return self.verified(study)

    def verified(self, study: Path) -> Caught:
        """What a verification finds first."""
        found = verify(study).differences
        assert found
        return Caught("by --verify", found[0])

    @contextlib.contextmanager
    def _planted(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(patch)
            yield


def _sweeps(override: str) -> bool:
    return override.partition("=")[0] in ("scaling", "seed") and "," in override


def write_tree(root: Path, splits: dict[str, int], seed: int = 0) -> Path:
    """Noisy one-coloured pictures of 48 px in two classes, another noise in every picture."""
    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        for name, colour in {"blue": (60, 80, 160), "red": (160, 80, 60)}.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(np.array(colour), 40, (48, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


ARMS = {"compound": (1.2, 1.1, 36), "depth": (2.2, 1.0, 32), "width": (1.0, 1.5, 32)}
MACS = {"compound": 3_220_000, "depth": 3_230_000, "width": 3_210_000}
TESTED = 2000


def innocent_study(folder: Path) -> Path:
    """Three arms with three seeds each, with all that runs leave behind; compound is better by far."""
    study = folder / "innocent"
    for number, (arm, (depth, width, side)) in enumerate(ARMS.items()):
        for seed in range(3):
            rng = np.random.default_rng([number, seed])
            right = 1600 - 60 * (number > 0) + int(rng.integers(-8, 9))
            arrays = {**_predicted("val", right // 4, TESTED // 4, rng), **_predicted("test", right, TESTED, rng)}
            values = [right / TESTED * share for share in (0.6, 0.9)] + [float(_accuracy(arrays, "val"))]
            macs, digest = MACS[arm], f"{10 * number + seed:08x}"
            run = record(
                study="innocent", arm=arm, seed=seed, depth=depth, width=width, resolution=side, macs=macs,
                base_macs=1_610_000, base_price=1_610_000.0, fvcore_total=int(1.07 * macs), network="nano", steps=300,
                data="clutter", train_macs=3 * macs * 300 * 64, epochs=3, best_epoch=3, config_hash=digest + "0" * 56,
                val_pictures=TESTED // 4, test_pictures=TESTED, wandb_version="0.31.0", hydra_version="1.3.8",
                weights_sha256=f"w{digest}", predictions_sha256=digest_arrays(arrays), test_loss=_loss(arrays, "test"),
                test_accuracy=float(_accuracy(arrays, "test")), val_accuracy=values[-1], val_loss=_loss(arrays, "val"),
                best_val_accuracy=values[-1], best_val_accuracy_epoch=3, last_val_accuracy=values[-1],
                best_train_accuracy=values[-1], last_train_accuracy=values[-1], best_train_loss=0.5,
                last_train_loss=0.5, best_val_loss=0.5, last_val_loss=0.5,
            )  # fmt: skip
            place = study / f"{arm}-2x-seed{seed}-{digest}"
            write_status(place, "finished")
            np.savez_compressed(place / "predictions.npz", allow_pickle=False, **arrays)
            lines = [f"{n},0.5,{v},0.5,{v},0.1,5.0,800.0" for n, v in enumerate(values, start=1)]
            names = "epoch,train_loss,train_accuracy,val_loss,val_accuracy,learning_rate,seconds,images_per_second"
            (place / "history.csv").write_text("\n".join([names, *lines]) + "\n")
            write_cam(place, run, count=2)
            (place / "checkpoints").mkdir()
            (place / "checkpoints" / "best.ckpt").write_bytes(f"weights of {place.name}".encode())
            dataclasses.replace(run, checkpoint_sha256=_file_hash(place / "checkpoints" / "best.ckpt")).write(place)
    return study


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _predicted(split: str, right: int, count: int, rng: np.random.Generator) -> dict[str, Any]:
    labels = np.arange(count) % 10
    hits = np.zeros(count, bool)
    hits[rng.permutation(count)[:right]] = True
    guesses = np.where(hits, labels, (labels + 1 + rng.integers(0, 9, count)) % 10)
    logits = np.eye(10, dtype=np.float32)[guesses] * 3
    return {f"{split}_labels": labels.astype(np.int64), f"{split}_logits": logits}


def _accuracy(arrays: dict[str, Any], split: str) -> float:
    return float((arrays[f"{split}_logits"].argmax(1) == arrays[f"{split}_labels"]).mean())


def _loss(arrays: dict[str, Any], split: str) -> float:
    logs = log_softmax(arrays[f"{split}_logits"].astype(np.float64), axis=1)
    return float(-logs[np.arange(len(logs)), arrays[f"{split}_labels"]].mean())


def change_records(study: Path, wanted: str, changes: Callable[[RunRecord], dict[str, Any]]) -> None:
    """Write records anew, as a program would that has these facts wrong: sealed, and with the folder's own name."""
    for path in sorted(study.glob("*/record.json")):
        found = RunRecord.read(path)
        if found.arm == wanted or not wanted:
            dataclasses.replace(found, **changes(found)).write(path.parent)


def first_of(study: Path, arm: str) -> Path:
    """The folder of an arm's first seed."""
    return sorted(study.glob(f"{arm}-2x-seed0-*"))[0]


def drop_seeds(study: Path, kept: int) -> None:
    """Remove all but the first seeds."""
    for path in sorted(study.glob("*/record.json")):
        if RunRecord.read(path).seed >= kept:
            shutil.rmtree(path.parent)

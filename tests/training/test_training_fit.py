"""`fit` and `evaluate` on pictures: what is learnt, what is chosen, when the test split is opened, what is written."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from training_tiny import CPU, RECIPE, SIDE, Run, changed, checkpoint, network, pictures_of, state_of, train, watch

from src.data.module import ImageDataModule
from src.data.options import AugmentationOptions, ClutterOptions, DataOptions
from src.data.sampling import RawBatch
from src.data.splits import ImageSplit, SealedSplit
from src.scaling.audit import hash_weights
from src.training import fit as fit_module
from src.training.checkpoints import resumable
from src.training.fit import Progress, Split, curve_summary, evaluate, save_predictions
from src.training.module import Classifier, EpochRow
from src.training.schedule import rate_at

COLUMNS = "epoch,train_loss,train_accuracy,val_loss,val_accuracy,learning_rate,seconds,images_per_second,skipped_steps"
TIMES = ("seconds", "images_per_second")


class Misled(ImageDataModule):
    """Labels of the training pictures are right in epochs 3 and 4 only, so that validation rises and then falls."""

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        assert self.trainer is not None
        if self.trainer.training and self.trainer.current_epoch not in (2, 3):
            labels = (labels + 1) % 3
        return images, labels


@dataclass
class Outcome:
    """A whole run, in the order of `src.arm`, with what happened when."""

    run: Run
    val: Split
    test: Split
    events: list[str]
    weights_tested: set[str]


@pytest.fixture(scope="module")
def tested(pictures: DataOptions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    events: list[str] = []
    weights: set[str] = set()
    unseal, test_step = SealedSplit.open, Classifier.test_step

    def spy_open(split: SealedSplit) -> ImageSplit:
        events.append("open")
        return unseal(split)

    def spy_test_step(module: Classifier, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        weights.add(hash_weights(module.network.state_dict()))
        test_step(module, batch, batch_idx)

    data = Misled(pictures, SIDE, 8, 10, 0)
    data.prepare_data()
    data.setup()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealedSplit, "open", spy_open)
        patch.setattr(Classifier, "test_step", spy_test_step)
        run = train(
            tmp_path_factory.mktemp("misled"),
            data,
            changed(epochs=7, ema_horizon=0.02),
            report=lambda **values: events.append(f"epoch {values['epoch']}"),
        )
        events.append("trained")
        val = evaluate(run.fit.module, data, "val", CPU)
        events.append("validated")
        test = evaluate(run.fit.module, data, "test", CPU)
        yield Outcome(run, val, test, events, weights)


def network_hash(state: dict[str, Tensor]) -> str:
    """Hash of a checkpoint's weights under the names of the bare network."""
    return hash_weights({name.removeprefix("network."): tensor for name, tensor in state.items()})


def rows_without_times(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(row).items() if k not in TIMES} for row in run.fit.history]


def test_the_checkpoint_is_the_one_validation_chose(tested: Outcome) -> None:
    accuracies = [row.val_accuracy for row in tested.run.fit.history]
    best = tested.run.fit.best_epoch
    assert best in (3, 4) and accuracies[best - 1] == max(accuracies) > max(accuracies[0], accuracies[-1]) + 0.1
    saved = checkpoint(tested.run.folder, "best")
    assert saved["epoch"] == best - 1 and saved["global_step"] == 6 * best
    assert network_hash(saved["state_dict"]) == hash_weights(tested.run.fit.module.network.state_dict())


def test_the_test_split_is_opened_once_by_the_chosen_weights_after_training(tested: Outcome) -> None:
    assert tested.events.count("open") == 1 == tested.run.data.test_openings
    assert tested.events.index("open") > tested.events.index("validated") > tested.events.index("trained")
    assert {f"epoch {number}" for number in range(1, 8)} == set(tested.events[: tested.events.index("trained")])
    assert tested.weights_tested == {network_hash(checkpoint(tested.run.folder, "best")["state_dict"])}
    with pytest.raises(RuntimeError, match=r"opened before"):
        evaluate(tested.run.fit.module, tested.run.data, "test", CPU)


def test_the_last_checkpoint_is_that_of_the_last_epoch(tested: Outcome) -> None:
    last, best = (checkpoint(tested.run.folder, name) for name in ("last", "best"))
    assert (last["epoch"], last["global_step"]) == (6, 42)
    assert last["history"] == [asdict(row) for row in tested.run.fit.history]
    assert best["history"] == last["history"][: tested.run.fit.best_epoch]
    assert network_hash(last["state_dict"]) != network_hash(best["state_dict"])
    assert {path.name for path in (tested.run.folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_validation_is_reproduced_by_the_chosen_checkpoint(tested: Outcome) -> None:
    row = tested.run.fit.history[tested.run.fit.best_epoch - 1]
    shifted = tested.val.logits.astype(np.float64) - tested.val.logits.max(1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    losses = -log_probability[np.arange(24), tested.val.labels]
    assert row.val_accuracy == pytest.approx((tested.val.logits.argmax(1) == tested.val.labels).mean(), abs=1e-7)
    assert row.val_loss == pytest.approx(losses.mean(), rel=1e-5)
    assert tested.val.accuracy == (tested.val.logits.argmax(1) == tested.val.labels).mean()
    assert tested.val.loss == pytest.approx(losses.mean(), rel=1e-12)


def test_evaluation_sees_all_pictures_in_order_in_evaluation_mode(tested: Outcome) -> None:
    module, data = tested.run.fit.module, tested.run.data
    module.train()
    again = evaluate(module, data, "val", CPU)
    assert np.array_equal(again.logits, tested.val.logits)
    assert np.array_equal(tested.val.labels, data.data.val.labels) and len(tested.test.labels) == 18
    assert tested.val.logits.dtype == np.float32 and tested.val.labels.dtype == np.int64
    module.eval()
    with torch.no_grad():
        direct = [module(data.prepare_batch(batch)[0]).logits for batch in data.val_dataloader()]
    np.testing.assert_allclose(tested.val.logits, torch.cat(direct), rtol=1e-5, atol=1e-5)
    assert tested.test.accuracy > 0.6


def test_history_csv_is_the_history(tested: Outcome) -> None:
    lines = (tested.run.folder / "history.csv").read_text().splitlines()
    assert lines[0] == COLUMNS and len(lines) == 1 + 7
    for number, (line, row) in enumerate(zip(csv.DictReader(lines), tested.run.fit.history, strict=True), 1):
        assert {key: float(value) for key, value in line.items()} == asdict(row)
        assert line["epoch"] == str(number)
    assert tested.run.fit.module.images_per_second == sorted(r.images_per_second for r in tested.run.fit.history)[3]
    assert all(row.images_per_second == pytest.approx(48 / row.seconds) for row in tested.run.fit.history)


def test_progress_tells_where_training_stands(tested: Outcome) -> None:
    reports, history = tested.run.reports, tested.run.fit.history
    assert [report["step"] for report in reports] == list(range(1, 43))
    assert [report["epoch"] for report in reports] == [1 + step // 6 for step in range(42)]
    assert {(report["phase"], report["epochs"], report["steps"]) for report in reports} == {("training", 7, 42)}
    assert all(report["seconds_left"] > 0.0 for report in reports[:-1]) and reports[-1]["seconds_left"] == 0.0
    assert all(report["images_per_second"] > 0.0 for report in reports)
    expected = [None, *(row.val_accuracy for row in history)]
    assert [report["val_accuracy"] for report in reports] == [expected[step // 6] for step in range(42)]


def test_seconds_left_come_from_the_pace_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed at step 4 of 10: two steps in three seconds leave four steps, hence six seconds."""
    clock = [100.0]
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    reports: list[dict[str, Any]] = []
    progress = Progress(lambda **values: reports.append(values), epochs=2, steps=10)
    module = Classifier(network(), RECIPE, 10)
    clock[0] = 200.0
    progress.on_train_start(SimpleNamespace(global_step=4), module)  # type: ignore[arg-type]
    clock[0] = 203.0
    progress.on_train_batch_end(SimpleNamespace(global_step=6, current_epoch=1), module)  # type: ignore[arg-type]
    (report,) = reports
    assert (report["seconds_left"], report["images_per_second"]) == (6.0, 2 * 8 / 3.0)
    assert (report["epoch"], report["step"], report["steps"], report["val_accuracy"]) == (2, 6, 10, None)


def test_separable_pictures_are_learnt_without_a_word(
    pictures: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.Logger, "handle", lambda logger, record: said.append(record.getMessage()))
    torch.set_warn_always(True)  # or torch tells each warning once a process, perhaps in another test
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = train(tmp_path, pictures_of(pictures), changed(epochs=4))
            test = evaluate(run.fit.module, run.data, "test", CPU)
    finally:
        torch.set_warn_always(False)
    losses = [row.train_loss for row in run.fit.history]
    assert losses[-1] < 0.5 * losses[0] and losses[0] < 2.0
    assert run.fit.history[-1].train_accuracy > 0.8 and test.accuracy > 0.9 and test.loss < 0.8 < math.log(3)
    assert run.fit.steps == 24 and run.fit.train_seconds > sum(row.seconds for row in run.fit.history)
    assert run.fit.module.sides_seen == {SIDE}
    assert [str(warning.message) for warning in caught if "treespec" not in str(warning.message)] == []
    assert said == []


def test_the_embedded_data_trains_too(tmp_path: Path) -> None:
    clutter = ClutterOptions(train=64, val=20, test=20, canvas=32, digit_min=16, digit_max=24, fragments=1)
    options = DataOptions("clutter", "clutter", clutter=clutter, augmentation=AugmentationOptions(crop_padding=0.05))
    run = train(tmp_path, pictures_of(options), changed(epochs=2))
    test = evaluate(run.fit.module, run.data, "test", CPU)
    assert test.logits.shape == (20, 10) and run.fit.steps == 16 and run.data.test_openings == 1
    assert run.fit.history[1].train_loss < run.fit.history[0].train_loss


def test_one_seed_is_one_result_to_the_bit(pictures: DataOptions, tmp_path: Path) -> None:
    results = []
    for name, seed, disturb in (("a", 5, 0), ("b", 5, 1), ("c", 6, 0)):
        torch.manual_seed(disturb)
        np.random.seed(disturb)
        run = train(tmp_path / name, pictures_of(pictures, seed=seed), seed=seed)
        val, test = (evaluate(run.fit.module, run.data, split, CPU) for split in ("val", "test"))
        weights = hash_weights(run.fit.module.network.state_dict())
        last = network_hash(checkpoint(run.folder, "last")["current_model_state"])
        results.append((weights, last, save_predictions(tmp_path / f"{name}.npz", val, test), rows_without_times(run)))
    assert results[0] == results[1]
    assert all(mine != other for mine, other in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize(
    ("ema_horizon", "steps", "workers"), [(0.1, 24, 0), (0.0, 24, 0), (0.1, 24, 1), (0.1, 22, 0), (0.1, 22, 1)]
)
def test_a_resumed_run_equals_the_uninterrupted_one(
    pictures: DataOptions,
    tmp_path: Path,
    ema_horizon: float,
    steps: int,
    workers: int,
) -> None:
    recipe = changed(epochs=4, ema_horizon=ema_horizon)
    folder, half, finished = (tmp_path / name for name in ("arm", "half", "finished"))

    def keep_half(**values: Any) -> None:
        if values["step"] == 13:  # the first of epoch 3: last.ckpt is that of epoch 2
            shutil.copytree(folder, half)

    pictures = dataclasses.replace(pictures, workers=workers)
    whole = train(folder, pictures_of(pictures), recipe, report=keep_half, steps=steps)
    folder.rename(finished)
    half.rename(folder)
    torch.manual_seed(99)
    last, problem = resumable(folder, {})
    assert last is not None and problem == ""
    resumed = train(folder, pictures_of(pictures), recipe, steps=steps, resume=last)
    assert [report["step"] for report in resumed.reports] == list(range(13, steps + 1))
    assert rows_without_times(resumed) == rows_without_times(whole)
    assert (folder / "history.csv").read_text().startswith((finished / "history.csv").read_text()[:200])
    for name in ("best", "last"):
        saved = [checkpoint(place, name) for place in (finished, folder)]
        for state in ("state_dict", "current_model_state") if ema_horizon else ("state_dict",):
            assert network_hash(saved[0][state]) == network_hash(saved[1][state])
    facts = [(run.fit.best_epoch, run.fit.steps, run.fit.ema_updates, run.fit.ema_distance) for run in (whole, resumed)]
    assert facts[0] == facts[1]


class Diary(Callback):
    """Notes the rate of every step, the labels it saw, and the step at which each epoch validated."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.labels: list[list[int]] = []
        self.counted: list[int | float] = []
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.labels.append(batch[1].tolist())

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.counted.append(trainer.num_training_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated.append(trainer.global_step)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("steps", "lengths"),
    [(7, (3, 2, 2)), (4, (2, 2)), (8, (3, 3, 2)), (9, (3, 3, 3)), (2, (2,))],
)
def test_a_run_lasts_exactly_the_steps_asked_for(
    pictures: DataOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    lengths: tuple[int, ...],
    workers: int,
) -> None:
    """Epochs of at most 3 steps of 16 of the 48 pictures; the recipe's own 5 epochs are not what the run lasts."""
    recipe = changed(epochs=5, batch_size=16)
    data = pictures_of(dataclasses.replace(pictures, workers=workers), recipe)
    diary = Diary()
    watch(monkeypatch, [diary])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(tmp_path, data, recipe, steps=steps)
    assert [str(warning.message) for warning in caught if "Lightning" in str(warning.message)] == []
    ends = list(np.cumsum(lengths))
    assert data.cut_run(steps) == lengths == tuple(diary.counted) and diary.validated == ends
    assert run.fit.steps == run.fit.ema_updates == steps == ends[-1]

    expected = [0.02 * rate_at(step, steps, recipe.warmup, recipe.final_learning_rate) for step in range(steps)]
    assert diary.rates == pytest.approx(expected) and diary.rates[-1] == pytest.approx(0.02 * 0.01)
    seen = []
    for number, length in enumerate(lengths):
        order = np.random.default_rng([1, 0, number]).permutation(48)[: 16 * length]
        seen += data.data.train.labels[order].reshape(-1, 16).tolist()
    assert diary.labels == seen

    history = run.fit.history
    assert [row.epoch for row in history] == list(range(1, len(lengths) + 1))
    assert [row.images_per_second * row.seconds for row in history] == pytest.approx([16 * n for n in lengths])
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + len(lengths)
    best, last = checkpoint(tmp_path, "best"), checkpoint(tmp_path, "last")
    assert (last["epoch"], last["global_step"]) == (len(lengths) - 1, steps)
    assert best["global_step"] == ends[run.fit.best_epoch - 1]
    val = evaluate(run.fit.module, data, "val", CPU)
    assert history[run.fit.best_epoch - 1].val_loss == pytest.approx(val.loss, rel=1e-5)

    assert [report["step"] for report in run.reports] == list(range(1, steps + 1))
    assert [report["epoch"] for report in run.reports] == [k for k, n in enumerate(lengths, 1) for _ in range(n)]
    assert {(report["epochs"], report["steps"]) for report in run.reports} == {(len(lengths), steps)}
    assert all(report["seconds_left"] > 0.0 for report in run.reports[:-1]) and run.reports[-1]["seconds_left"] == 0.0


def test_whole_epochs_are_the_run_that_was_not_cut(pictures: DataOptions, tmp_path: Path) -> None:
    cut = train(tmp_path / "cut", pictures_of(pictures), steps=18)
    uncut = train(tmp_path / "uncut", pictures_of(pictures), lengths=(6, 6, 6))
    assert rows_without_times(cut) == rows_without_times(uncut)
    for name in ("best", "last"):
        states = [checkpoint(run.folder, name)["state_dict"] for run in (cut, uncut)]
        assert network_hash(states[0]) == network_hash(states[1])


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_cut_too_short_is_refused(pictures: DataOptions, tmp_path: Path, steps: int) -> None:
    data = pictures_of(pictures)
    with pytest.raises(ValueError, match=rf"gives a run of {steps} step.*more epochs"):
        train(tmp_path, data, lengths=data.cut_run(steps))


def test_a_run_of_another_length_than_its_schedule_is_no_result(pictures: DataOptions, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"took 18 optimizer steps, its schedule 21"):
        train(tmp_path, pictures_of(pictures), lengths=(7, 7, 7))


def test_a_schedule_that_does_not_fit_stops_before_training(pictures: DataOptions, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe\.epochs=1 .*recipe\.batch_size=48 gives a run of 1 step"):
        train(tmp_path, pictures_of(pictures, changed(batch_size=48)), changed(epochs=1, batch_size=48))
    assert list(tmp_path.iterdir()) == []


class Poison(Callback):
    """Makes a weight NaN at one point of training."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.place = (epoch, batch)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        if (trainer.current_epoch + 1, rest[2]) == self.place:
            assert isinstance(pl_module, Classifier)
            pl_module.network.classifier.weight.data[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("place", "named"),
    [((1, 2), "training loss is nan in epoch 1"), ((2, 2), "training loss is nan in epoch 2"),
     ((2, 5), "validation loss is nan in epoch 2"), ((3, 5), "validation loss is nan in epoch 3")],
)  # fmt: skip
def test_a_diverged_run_is_named_in_the_epoch_it_happened(
    pictures: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int], named: str
) -> None:
    watch(monkeypatch, [Poison(*place)])
    with pytest.raises(FloatingPointError, match=rf"{named}: training diverged; lower recipe\.learning_rate"):
        train(tmp_path, pictures_of(pictures))
    rows = (tmp_path / "history.csv").read_text().splitlines()[1:] if place[0] > 1 else []
    assert len(rows) == place[0] - 1 and "nan" not in "".join(rows)


def test_an_absurd_rate_diverges_by_name(pictures: DataOptions, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) in epoch 1: .*recipe\.learning_rate"):
        train(tmp_path, pictures_of(pictures), changed(learning_rate=1e30))


class Remember(Callback):
    """Keeps the batches and the weights before every step."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch[0].clone(), batch[1].clone()))
        self.states.append(state_of(pl_module.network))


def test_logged_losses_hold_no_label_smoothing(
    pictures: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = changed(epochs=2, label_smoothing=0.6, dropout=0.0, drop_path=0.0)
    seen = Remember()
    watch(monkeypatch, [seen])
    run = train(tmp_path, pictures_of(pictures), recipe)
    rows = []
    for (images, labels), state in zip(seen.batches, seen.states, strict=True):
        model = network(recipe=recipe).to(memory_format=torch.channels_last).train()
        model.load_state_dict(state)
        with torch.no_grad():
            logits = model(images).logits.double().numpy()
        chosen = logits[np.arange(8), labels.numpy()]
        rows.append([(np.log(np.exp(logits).sum(1)) - chosen).mean(), (logits.argmax(1) == labels.numpy()).mean()])
    for row, means in zip(run.fit.history, np.array(rows).reshape(2, 6, 2).mean(1), strict=True):
        assert (row.train_loss, row.train_accuracy) == pytest.approx(tuple(means), rel=1e-4)
    val = evaluate(run.fit.module, run.data, "val", CPU)
    assert run.fit.history[run.fit.best_epoch - 1].val_loss == pytest.approx(val.loss, rel=1e-5)


@pytest.mark.parametrize("key", ["label_smoothing", "dropout", "drop_path", "weight_decay"])
def test_every_regulariser_acts(pictures: DataOptions, tmp_path: Path, key: str) -> None:
    recipes = (changed(epochs=1), changed(epochs=1, **{key: 0.0}))
    runs = [train(tmp_path / str(i), pictures_of(pictures), recipe) for i, recipe in enumerate(recipes)]
    a, b = (hash_weights(run.fit.module.network.state_dict()) for run in runs)
    assert a != b


def test_training_pictures_are_those_of_the_arms_resolution(pictures: DataOptions, tmp_path: Path) -> None:
    data = ImageDataModule(pictures, 24, RECIPE.batch_size, 10, 0)
    data.setup()
    assert train(tmp_path, data, changed(epochs=1)).fit.module.sides_seen == {24}


LOGITS = st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=20)


@settings(deadline=None)
@given(LOGITS, st.integers(0, 2**32 - 1))
def test_accuracy_and_loss_of_predictions(rows: list[list[float]], seed: int) -> None:
    logits = np.array(rows, np.float32)
    labels = np.random.default_rng(seed).integers(0, 3, len(rows))
    split = Split(labels, logits)
    right = [row[label] >= max(row) and row.index(max(row)) == label for row, label in zip(rows, labels, strict=True)]
    losses = [math.log(sum(math.exp(x - row[label]) for x in row)) for row, label in zip(rows, labels, strict=True)]
    assert split.accuracy == pytest.approx(sum(right) / len(right))
    assert split.loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-9, abs=1e-9)


def test_stored_predictions_and_their_hash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    val, test = (Split(rng.integers(0, 3, n), rng.normal(size=(n, 3)).astype(np.float32)) for n in (5, 7))
    path = tmp_path / "predictions.npz"
    first = save_predictions(path, val, test)
    with np.load(path, allow_pickle=False) as stored:
        assert list(stored) == ["val_labels", "val_logits", "test_labels", "test_logits"]
        expected = hashlib.sha256(b"".join(name.encode() + stored[name].tobytes() for name in stored)).hexdigest()
        assert np.array_equal(stored["test_logits"], test.logits) and np.array_equal(stored["val_labels"], val.labels)
    assert first == expected == save_predictions(path, val, test)
    assert save_predictions(path, val, test, np.array([3, 3, 8, 8, 8, 1, 1])) == first
    with np.load(path, allow_pickle=False) as stored:
        assert stored["test_clusters"].tolist() == [3, 3, 8, 8, 8, 1, 1] and len(stored) == 5
    test.logits[6, 2] += 1e-6
    assert save_predictions(path, val, test) != first


ROWS = st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=12)


@settings(deadline=None)
@given(ROWS)
def test_curves_are_summarised_by_their_best_and_last(values: list[tuple[float, ...]]) -> None:
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    rows = [EpochRow(epoch, *row, 0.1, 1.0, 1.0) for epoch, row in enumerate(values, 1)]
    summary = curve_summary(tuple(rows))
    assert len(summary) == 12
    for name, curve in zip(names, np.array(values).T, strict=True):
        best = curve.argmin() if name.endswith("loss") else curve.argmax()
        assert summary[f"best_{name}"] == curve[best] and summary[f"best_{name}_epoch"] == best + 1
        assert summary[f"last_{name}"] == curve[-1]


def test_the_best_epoch_of_the_record_is_that_of_the_checkpoint(tested: Outcome) -> None:
    summary = curve_summary(tested.run.fit.history)
    assert summary["best_val_accuracy_epoch"] == tested.run.fit.best_epoch

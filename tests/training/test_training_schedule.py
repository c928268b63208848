"""The learning rate over the run, the lint of guard G5, and the options that may not be asked for."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_tiny import RECIPE, changed

from src.training import schedule
from src.training.options import HardwareOptions, Recipe
from src.training.schedule import check_schedule, rate_at

STEPS = st.integers(2, 3000)
WARMUP = st.floats(0.0, 0.1)
FINAL = st.floats(0.0, 0.02)


@settings(deadline=None)
@given(STEPS, WARMUP, FINAL)
def test_every_allowed_schedule_rises_to_its_peak_and_is_annealed(steps: int, warmup: float, final: float) -> None:
    rates = [rate_at(step, steps, warmup, final) for step in range(steps)]
    rising = math.floor(warmup * steps)
    assert all(rate > 0.0 for rate in rates[:-1])
    assert max(rates) == 1.0 and rates.index(1.0) == max(0, rising - 1)
    assert rising <= 0.1 * steps
    assert rates[-1] == pytest.approx(final, abs=1e-12)
    assert rates[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert all(a >= b for a, b in zip(rates[rising:], rates[rising + 1 :], strict=False))
    check_schedule(changed(warmup=warmup, final_learning_rate=final), steps)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(2, 60), FINAL, st.data())
def test_the_schedule_stretches_with_the_run(times: int, length: int, final: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, length - 1))
    falling = rate_at(step, length, 0.0, final)
    assert rate_at(times * step, times * (length - 1) + 1, 0.0, final) == pytest.approx(falling, abs=1e-12)
    rising = rate_at(step, 10 * length, 0.1, final)  # in its warm-up of `length` steps
    assert rate_at(times * (step + 1) - 1, 10 * length * times, 0.1, final) == pytest.approx(rising, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_the_cosine_passes_the_middle_half_way(warmup: float) -> None:
    rising = int(warmup * 201)
    middle = rising + (200 - rising) // 2
    assert rate_at(middle, 201, warmup, 0.02) == pytest.approx((1.0 + 0.02) / 2)


@settings(deadline=None)
@given(STEPS, WARMUP, FINAL, st.integers(0, 100))
def test_a_step_after_the_run_keeps_the_last_rate(steps: int, warmup: float, final: float, beyond: int) -> None:
    assert rate_at(steps + beyond, steps, warmup, final) == pytest.approx(final, abs=1e-12)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_too_short_to_be_annealed_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"recipe\.epochs=3 .*recipe\.batch_size=8 .*{steps} step.*more epochs"):
        check_schedule(RECIPE, steps)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda step, steps: 0.0, r"learning rate is 0 inside the run"),  # C10: a rate of 0, trained on silently
        (lambda step, steps: -1.0 if step == 5 else 1.0, r"learning rate is -1 inside the run"),
        (lambda step, steps: (step + 1) / steps, r"peaks at step 99 of 100.*at most 10%"),
        (lambda step, steps: min(1.0, (step + 1) / 30) * (1 - step / steps) ** 2, r"peaks at step \d+ of 100"),
        (lambda step, steps: rate_at(step, 10 * steps, 0.0, 0.0), r"ends at 97\.\d% of its peak.*2% or less"),  # C12
        (lambda step, steps: 1.0, r"ends at 100\.0% of its peak"),  # H11: constant
    ],
    ids=["zero", "negative", "rising", "long warm-up", "cut off", "constant"],
)
def test_the_lint_refuses_each_bad_schedule(monkeypatch: pytest.MonkeyPatch, rate: Any, message: str) -> None:
    monkeypatch.setattr(schedule, "rate_at", lambda step, steps, warmup, final: rate(step, steps))
    with pytest.raises(ValueError, match=message):
        check_schedule(RECIPE, 100)


def test_the_lint_lets_the_limits_themselves_pass() -> None:
    for steps in (10, 11, 19, 20, 29, 30, 70, 99, 100, 1000):
        check_schedule(changed(warmup=0.1, final_learning_rate=0.02), steps)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("warmup", 0.2), ("warmup", -0.01), ("warmup", NAN), ("warmup", 0.1000001),
        ("final_learning_rate", 0.5), ("final_learning_rate", -0.1), ("final_learning_rate", NAN),
        ("learning_rate", 0.0), ("learning_rate", -1.0), ("learning_rate", NAN), ("learning_rate", INF),
        ("weight_decay", -0.1), ("weight_decay", NAN), ("weight_decay", INF),
        ("epochs", 0), ("epochs", -3), ("batch_size", 0), ("batch_size", 1),
        ("dropout", 1.0), ("dropout", -0.1), ("dropout", NAN), ("drop_path", 1.0), ("label_smoothing", 1.0),
        ("label_smoothing", -0.1), ("ema_horizon", 0.9), ("ema_horizon", -0.1), ("ema_horizon", NAN),
        ("momentum", 1.0), ("momentum", -0.1), ("momentum", NAN),
        ("optimizer", "lion"), ("optimizer", ""),
    ],
)  # fmt: skip
def test_an_impossible_recipe_is_refused_by_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^recipe\.{key}={re.escape(repr(value))} ") as refused:
        changed(**{key: value})
    assert "\n" not in str(refused.value)


def test_a_refused_value_is_not_rounded_into_an_allowed_one() -> None:
    with pytest.raises(ValueError, match=r"warmup=0\.1000001 must lie in \[0, 0\.1\]"):
        changed(warmup=0.1000001)


def test_an_infinite_rate_is_not_called_too_small() -> None:
    with pytest.raises(ValueError, match=r"learning_rate=inf must be .*finite"):
        changed(learning_rate=INF)


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("warmup", 0.0, 0.1), ("final_learning_rate", 0.0, 0.02), ("label_smoothing", 0.0, 0.9), ("dropout", 0.0, 0.9),
        ("drop_path", 0.0, 0.9), ("ema_horizon", 0.0, 0.5), ("momentum", 0.0, 0.999), ("weight_decay", 0.0, 10.0),
        ("learning_rate", 1e-9, 1e9), ("epochs", 1, 10**6), ("batch_size", 2, 10**6),
    ],
)  # fmt: skip
def test_the_ends_of_every_range_are_allowed(key: str, low: float, high: float) -> None:
    assert (getattr(changed(**{key: low}), key), getattr(changed(**{key: high}), key)) == (low, high)


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("recipe.optimizer", "adam", "adamw"),
        ("recipe.optimizer", "AdamW", "adamw"),
        ("recipe.optimizer", "rmsporp", "rmsprop"),
        ("recipe.optimizer", "SGD", "sgd"),
        ("hardware.accelerator", "gpus", "gpu"),
        ("hardware.accelerator", "cpuu", "cpu"),
        ("hardware.precision", "bf16", "bf16-mixed"),
        ("hardware.precision", "32", "32-true"),
        ("hardware.precision", "16mixed", "16-mixed"),
    ],
)
def test_a_misspelt_choice_names_the_nearest(key: str, value: str, nearest: str) -> None:
    group, _, leaf = key.partition(".")
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}='{value}' .*mean {nearest} \(one of .*{nearest}"):
        changed(**{leaf: value}) if group == "recipe" else HardwareOptions("x", **{leaf: value})


@pytest.mark.parametrize("value", [0, -1])
def test_an_arm_needs_a_device(value: int) -> None:
    with pytest.raises(ValueError, match=rf"hardware\.devices={value} must be at least 1"):
        HardwareOptions("x", devices=value)


def test_a_memory_limit_is_a_size() -> None:
    with pytest.raises(ValueError, match=r"hardware\.memory_limit='4' is not a size: .* 4GiB"):
        HardwareOptions("x", memory_limit="4")
    with pytest.raises(ValueError, match=r"hardware\.memory_limit=0 leaves nothing"):
        HardwareOptions("x", memory_limit="0GiB")


@pytest.mark.parametrize("value", [0, -4])
def test_impossible_threads_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=rf"hardware\.threads={value} .*at least 1"):
        HardwareOptions("x", threads=value)


def test_options_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(AttributeError):
        RECIPE.learning_rate = 0.0  # type: ignore[misc]
    assert isinstance(RECIPE, Recipe) and hash(RECIPE) == hash(changed())

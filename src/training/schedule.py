"""The learning rate over the run, as one pure function, and the lint that proves it fits the run before anything
trains."""

from __future__ import annotations

import math

from src.training.options import LARGEST_FINAL_LEARNING_RATE, LARGEST_WARMUP, Recipe


def rate_at(step: int, steps: int, warmup: float, final: float) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak.

    Linear from peak / warm-up steps to the peak, then half a cosine down to `final` at the last step.
    """
    rising = math.floor(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    falling = max(1, steps - 1 - rising)
    progress = min(1.0, (step - rising) / falling)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def check_schedule(recipe: Recipe, steps: int) -> None:
    """Evaluate the rate at every step of the run and refuse a schedule that cannot work (guard G5).

    Raises:
        ValueError: too few steps to anneal, or a rate that is not positive, peaks too late or ends too high.
    """
    rates = [rate_at(step, steps, recipe.warmup, recipe.final_learning_rate) for step in range(steps)]
    if steps < 2:
        raise ValueError(
            f"recipe.epochs={recipe.epochs} with recipe.batch_size={recipe.batch_size} gives a run of {steps}"
            " step(s), which cannot be annealed; use more epochs, more pictures or a smaller batch"
        )
    if min(rates[:-1]) <= 0.0:
        raise ValueError(f"the learning rate is {min(rates):g} inside the run; it must stay above 0")
    peak = rates.index(max(rates))
    if peak > LARGEST_WARMUP * steps:
        raise ValueError(
            f"the learning rate peaks at step {peak} of {steps}; warm-up may take at most"
            f" {LARGEST_WARMUP:.0%} of the run"
        )
    if rates[-1] > LARGEST_FINAL_LEARNING_RATE * max(rates):
        raise ValueError(
            f"the learning rate ends at {rates[-1]:.1%} of its peak; a run must be annealed to"
            f" {LARGEST_FINAL_LEARNING_RATE:.0%} or less"
        )

"""The learning rate over the run, as one pure function of the step, and the lint that proves it fits the run before
anything trains (guard G5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from src.guards import named
from src.training.options import LARGEST_FINAL_LEARNING_RATE, LARGEST_WARMUP, Recipe

FEWEST_FALLS = 2  # of a staircase: the fewest with which step schedules are published (He et al. 2016, CIFAR-10)
# RMSprop's peak rate in the released code (tensorflow/tpu, efficientnet/main.py: base_learning_rate), grown with the
# batch. arXiv 1905.11946v5, section 5.2 prints 0.256 without the batch of 4,096 that it is for.
RELEASED_RATE, RELEASED_RATE_BATCH = 0.016, 256
LARGEST_RELEASED_FACTOR = 4.0
SHORTEST_MEMORY = 5  # steps that an average of weights should remember, or it is the weights


def rate_at(
    step: int, steps: int, warmup: float, final: float, shape: str = "cosine", decay_every: float = 0.0
) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak.

    Linear from peak / warm-up steps to the peak, then down to `final` at the last step, whatever the number of steps:

    - cosine: half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts).
    - one_cycle: a straight line (Smith & Topin 2017, arXiv 1708.07120, with the rise that guard G5 allows).
    - exponential: by the same factor every step.
    - staircase: by the same factor every `decay_every` of the run. Counted from step 0, as in the released code: falls
      that are due in the warm-up happen at its end.
    """
    rising = math.floor(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if shape == "staircase":
        falls = falls_of(steps, decay_every)
        return final ** (min(falls, math.floor(step / (decay_every * steps))) / max(1, falls))
    progress = min(1.0, (step - rising) / max(1, steps - 1 - rising))
    if shape == "exponential":
        return float(final**progress)
    if shape == "one_cycle":
        return 1.0 - (1.0 - final) * progress
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def falls_of(steps: int, decay_every: float) -> int:
    """How often a staircase falls in a run of `steps`."""
    return math.floor((steps - 1) / (decay_every * steps))


def share_of_peak(recipe: Recipe, step: int, steps: int) -> float:
    """`rate_at` of a recipe."""
    return rate_at(
        step, steps, recipe.warmup, recipe.final_learning_rate, shape=recipe.schedule, decay_every=recipe.decay_every
    )


def ema_decay(recipe: Recipe, steps: int) -> float:
    """Decay of the averaged weights, matched to the run: it remembers `ema_horizon` of its steps, and at least two."""
    return 1.0 - 1.0 / max(2.0, recipe.ema_horizon * steps)


@dataclass(frozen=True)
class Finding:
    """Something a schedule cannot do, or does not do though it was asked for.

    rule: its name. sentence: what is wrong, with the fix. fatal: nothing can be learnt from such a run; otherwise the
    run is sound and a component of the recipe stays without effect.
    """

    rule: str
    sentence: str
    fatal: bool


def lint(recipe: Recipe, steps: int) -> tuple[Finding, ...]:
    """Evaluate the rate at every step of the run and name all that cannot work in it (guard G5)."""
    if steps < 2:
        sentence = (
            f"recipe.epochs={recipe.epochs} with recipe.batch_size={recipe.batch_size} gives a run of {steps}"
            " step(s), which cannot be annealed; use more epochs, more pictures or a smaller batch"
        )
        return (Finding("too few steps", sentence, True),)
    return (*_shape_findings(recipe, steps), *_rate_findings(recipe, steps), *_share_findings(recipe, steps))


def _shape_findings(recipe: Recipe, steps: int) -> list[Finding]:
    """What a staircase needs room for."""
    if recipe.schedule != "staircase":
        return []
    falls, length = falls_of(steps, recipe.decay_every), recipe.decay_every * steps
    found = []
    if length < 1.0:
        sentence = (
            f"recipe.decay_every={recipe.decay_every:g} lets the rate fall every {length:.2g} steps of a run of"
            f" {steps}, and a stair needs a step at least: use recipe.schedule=exponential, a larger"
            " recipe.decay_every or more epochs"
        )
        found.append(Finding("stairs shorter than a step", sentence, True))
    if falls < FEWEST_FALLS:
        sentence = (
            f"recipe.decay_every={recipe.decay_every:g} lets the rate fall {falls} time(s) in {steps} steps, at least"
            f" {FEWEST_FALLS} are needed: use a smaller recipe.decay_every or more epochs"
        )
        found.append(Finding("too few falls", sentence, True))
    return found


def _rate_findings(recipe: Recipe, steps: int) -> list[Finding]:
    """What the rates themselves show, whatever shape they have."""
    rates = [share_of_peak(recipe, step, steps) for step in range(steps)]
    found = []
    if recipe.peak_learning_rate <= 0.0:
        sentence = f"the learning rate peaks at {recipe.peak_learning_rate:g}; it must stay above 0"
        return [Finding("no rate", sentence, True)]
    if min(rates[:-1]) <= 0.0:
        sentence = f"the learning rate is {min(rates):g} inside the run; it must stay above 0"
        return [Finding("no rate", sentence, True)]
    peak = rates.index(max(rates))
    if peak > LARGEST_WARMUP * steps:
        sentence = (
            f"the learning rate peaks at step {peak} of {steps}; warm-up may take at most"
            f" {LARGEST_WARMUP:.0%} of the run: lower recipe.warmup"
        )
        found.append(Finding("long warm-up", sentence, True))
    if rates[-1] > LARGEST_FINAL_LEARNING_RATE * max(rates):
        sentence = (
            f"the learning rate ends at {rates[-1]:.1%} of its peak; a run must be annealed to"
            f" {LARGEST_FINAL_LEARNING_RATE:.0%} or less: lower recipe.final_learning_rate"
        )
        found.append(Finding("not annealed", sentence, True))
    apart = recipe.peak_learning_rate * RELEASED_RATE_BATCH / (recipe.batch_size * RELEASED_RATE)
    if recipe.optimizer in ("rmsprop", "rmsprop_tf") and apart > LARGEST_RELEASED_FACTOR:
        sentence = named(
            "G5",
            f"the peak rate of {recipe.peak_learning_rate:g} for {recipe.batch_size} pictures a step is {apart:.3g}"
            f" times the {RELEASED_RATE:g} for {RELEASED_RATE_BATCH} with which EfficientNets were released",
        )
        found.append(Finding("far above the released rate", sentence, False))
    return found


def _share_findings(recipe: Recipe, steps: int) -> list[Finding]:
    """Shares of the run that are no whole step of this one."""
    found = []
    if recipe.warmup > 0.0 and math.floor(recipe.warmup * steps) < 2:  # one step of it is the peak already
        sentence = (
            f"recipe.warmup={recipe.warmup:g} of {steps} steps is no warm-up, since the first step takes the whole"
            " rate: use more epochs, or recipe.warmup=0"
        )
        found.append(Finding("no warm-up", sentence, False))
    if recipe.ema_horizon > 0.0:
        memory = 1.0 / (1.0 - ema_decay(recipe, steps))
        if memory >= steps:
            sentence = (
                f"recipe.ema_horizon={recipe.ema_horizon:g} lets averaged weights remember {memory:.3g} steps, as long"
                f" as the run of {steps}: use more epochs, or recipe.ema_horizon=0"
            )
            found.append(Finding("average longer than the run", sentence, False))
        elif memory < SHORTEST_MEMORY:
            sentence = (
                f"recipe.ema_horizon={recipe.ema_horizon:g} of {steps} steps lets averaged weights remember"
                f" {memory:.3g} steps, hardly more than the last: use more epochs or a larger recipe.ema_horizon"
            )
            found.append(Finding("average without memory", sentence, False))
    return found


def check_schedule(recipe: Recipe, steps: int) -> None:
    """Refuse a schedule that cannot work (guard G5).

    Raises:
        ValueError: too few steps to anneal, or a rate that is not positive, peaks too late, ends too high, or falls too
            seldom or too often.
    """
    for finding in lint(recipe, steps):
        if finding.fatal:
            raise ValueError(named("G5", finding.sentence))


def describe(recipe: Recipe, steps: int) -> str:
    """The schedule of a run as one line, for its log."""
    scaled = f" ({recipe.learning_rate:g} x {recipe.batch_size} / {recipe.learning_rate_batch})"
    peak = f"{recipe.peak_learning_rate:g}{scaled if recipe.learning_rate_batch else ''}"
    shape = recipe.schedule
    if shape == "staircase":
        falls = falls_of(steps, recipe.decay_every)
        shape += f" of {falls} falls, each x {recipe.final_learning_rate ** (1 / max(1, falls)):.4g},"
    average = f", averaged with decay {ema_decay(recipe, steps):.6g}" if recipe.ema_horizon > 0.0 else ""
    return (
        f"{recipe.optimizer}, rate up to {peak} in {math.floor(recipe.warmup * steps)} of {steps} steps, then {shape}"
        f" to {recipe.final_learning_rate:.4g} of it{average}"
    )

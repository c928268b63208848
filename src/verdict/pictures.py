"""A second interval: what the difference would be with other seeds and other test pictures of the same kind.

Welch's interval over seeds takes the test pictures as they are. Other pictures would favour the arms differently, and
which ones each arm gets right is stored, so both are resampled at once (crossed or pigeonhole bootstrap, Owen 2007,
which rather overestimates the noise than the reverse): a resample draws seeds of each arm, and one set of pictures for
all arms, which keeps what is common to them out of the difference.

Resampling a handful of seeds alone gives too short an interval (75 % coverage instead of 95 % at three seeds). So the
part of each resample that is due to seeds is stretched to the length of Welch's interval; with endless pictures both
intervals agree, and what pictures add comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from src.verdict.statistics import compare

RESAMPLES = 2000
_ROWS = 50  # resamples of pictures held at once


@dataclass(frozen=True, eq=False)
class Answers:
    """Which test pictures one run classified rightly.

    correct: (N,). clusters: (N,) number of the original that a picture was made of; None: pictures are independent.
    pictures: tells one list of test pictures from another.
    """

    correct: NDArray[np.bool_]
    pictures: str
    clusters: NDArray[np.int64] | None = None


def new_pictures(
    arms: Sequence[NDArray[np.bool_]],
    pairs: Sequence[tuple[int, int]],
    confidences: Sequence[float],
    clusters: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
) -> list[tuple[float, float]]:
    """Intervals of differences of accuracy, in pp, for new seeds and new pictures.

    Args:
        arms: (seeds, N) of each arm, whether it classified each of the N test pictures rightly.
        pairs: numbers of the arms whose difference is wanted, first minus second.
        confidences: of each pair's interval.
        clusters: (N,) pictures of equal number are drawn together.

    Raises:
        ValueError: an arm has fewer than two seeds, or arms have other numbers of pictures.
    """
    counts = [len(arm) for arm in arms]
    if min(counts) < 2 or len({arm.shape[1] for arm in arms}) > 1:
        shapes = ", ".join(f"{arm.shape[0]} x {arm.shape[1]}" for arm in arms)
        raise ValueError(f"new_pictures needs two seeds of every arm and the same pictures in all, got {shapes}")
    random = np.random.default_rng(0)  # the same records give the same interval
    drawn = _resampled_accuracies(np.concatenate(arms), clusters, resamples, random)  # (resamples, all seeds)
    owners = np.cumsum([0, *counts])
    accuracies = [100 * arm.mean(axis=1) for arm in arms]
    both, seeds_alone = [], []
    for start, count, accuracy in zip(owners, counts, accuracies, strict=False):
        weights = random.multinomial(count, np.full(count, 1 / count), resamples) / count
        both.append(np.einsum("rs,rs->r", weights, drawn[:, start : start + count]))
        seeds_alone.append(weights @ accuracy)
    intervals = []
    for (a, b), confidence in zip(pairs, confidences, strict=True):
        tail = (1 - confidence) / 2
        differences = both[a] - both[b]
        value = float(accuracies[a].mean() - accuracies[b].mean())
        part = seeds_alone[a] - seeds_alone[b] - value
        differences += (_stretch(accuracies[a], accuracies[b], confidence) - 1) * part
        low, high = np.quantile(differences, [tail, 1 - tail])
        intervals.append((float(low), float(high)))
    return intervals


def _resampled_accuracies(
    correct: NDArray[np.bool_], clusters: NDArray[np.int64] | None, resamples: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """(runs, N) answers to (resamples, runs) accuracies in percent on pictures drawn with replacement."""
    runs, pictures = correct.shape
    if clusters is None:
        rights, sizes = correct.T.astype(np.float32), None
    else:
        _, owner = np.unique(clusters, return_inverse=True)
        sizes = np.bincount(owner).astype(np.float32)
        rights = np.stack([np.bincount(owner, weights=row) for row in correct], axis=1).astype(np.float32)
    units = len(rights)
    found = np.empty((resamples, runs), np.float32)
    for start in range(0, resamples, _ROWS):
        rows = min(_ROWS, resamples - start)
        draws = random.integers(units, size=(rows, units), dtype=np.int32)
        counts = np.stack([np.bincount(row, minlength=units) for row in draws]).astype(np.float32)
        shown = pictures if sizes is None else (counts @ sizes)[:, None]
        found[start : start + rows] = 100 * (counts @ rights) / shown
    return found


def _stretch(a: NDArray[np.float64], b: NDArray[np.float64], confidence: float) -> float:
    """How much longer Welch's interval is than one of resampled seeds: the t quantile against the normal one, and the
    share of the variance that resampling n values with replacement loses."""
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return 1.0
    welch = compare(a.tolist(), b.tolist())
    resampled = math.fsum(float(side.var()) / len(side) for side in (a, b))
    quantile = (1 + confidence) / 2
    ratio = float(special.stdtrit(welch.df, quantile) / special.ndtri(quantile))
    return ratio * welch.error / math.sqrt(resampled)

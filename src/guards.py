"""The fifteen guards: the ways in which scaling studies have fooled their authors, each with what stands in its way.

A sentence that stops a run or blocks a claim names its guard, so that a reader can look it up here and in
docs/guards.md. The codes are those of the project's list of 55 defects of two published studies.
"""

from __future__ import annotations

GUARDS: dict[str, str] = {
    "G1": "the trained network is the one that was asked for, differs from the base on its axes, and from other arms",
    "G2": "costs are counted in one unit, from the tensors of the trained network, and equal their analytic twin",
    "G3": "arms of one budget cost the same",
    "G4": "the test split shares no picture with the others and is opened once, by the checkpoint of validation",
    "G5": "the learning rate is positive, warms up briefly, is annealed, and its schedule is as long as the run",
    "G6": "every part of the recipe that was declared has acted",
    "G7": "all splits and maps go through one transform, at one size",
    "G8": "every number belongs to the run, code, checkpoint and predictions that it names",
    "G9": "arms differ in nothing but their scaling, and all start untrained",
    "G10": "differences are held against the noise of seeds and pictures",
    "G11": "a network that guesses, or always answers the same, is no result",
    "G12": "activation maps of all arms explain the same class of the same pictures, from the tensor that is pooled",
    "G13": "what bears a published name is what was published",
    "G14": "what is said follows from tests; pixels beyond the data's, and words beyond the tests, are named",
    "G15": "the device that was asked for is the one that is used, and environments within a comparison are alike",
}


def named(guard: str, sentence: str) -> str:
    """A sentence with the guard that it speaks for, e.g. `... (guard G5)`."""
    assert guard in GUARDS
    return f"{sentence} (guard {guard})"

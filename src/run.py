"""The main job: `python -m src.run -m scaling=depth,width,compound`."""

from __future__ import annotations

import os
import sys

from omegaconf import DictConfig

from src.command import start
from src.launch.slots import SPIN_COUNT


def run_all(configs: list[DictConfig]) -> list[int]:
    """Run the arms of a sweep; see `src.study.run_all`. A single run is a sweep of one."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # for what is forked from here; read when torch is loaded
    from src import study  # only now: it takes seconds to import, and `--help` needs none of it

    return study.run_all(configs)


def preflight(configs: list[DictConfig]) -> list[int]:
    """Which arms of a sweep another launcher has to run; see `src.study.preflight`."""
    from src import study

    return study.preflight(configs)


if __name__ == "__main__":
    sys.exit(start(run_all, preflight))

"""The main job: `python -m src.run -m scaling=depth,width,compound`."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from src.command import start


def run_all(configs: list[DictConfig]) -> list[int]:
    """Run the arms of a sweep; see `src.study.run_all`. A single run is a sweep of one."""
    from src import study  # only now: it takes seconds to import, and `--help` needs none of it

    return study.run_all(configs)


if __name__ == "__main__":
    sys.exit(start(run_all))

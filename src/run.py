"""The command line: `python -m src.run -m scaling=depth,width,compound`.

Only Hydra is imported before a job runs, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig

from src.launch.hydra_launcher import check_choices, register
from src.messages import UserMistake, run_hydra

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("scaling", "network", "data", "recipe", "hardware", "tracking", "launcher")


def run_all(configs: list[DictConfig]) -> list[int]:
    """Run the arms of a sweep; see `src.study.run_all`."""
    from src import study

    return study.run_all(configs)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """One arm, as a sweep of one: it gets a process of its own and a comparison with what the study already holds."""
    try:
        check_choices(HydraConfig.get().runtime.choices, GROUPS)
    except ConfigCompositionException as error:
        raise UserMistake(str(error)) from error
    code = run_all([composed])[0]
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    register(run_all, ROOT / "sweeps", GROUPS)
    sys.exit(run_hydra(main, ROOT / "conf"))

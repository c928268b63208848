"""The command line of `python -m src.run` and the verbs beside it: Hydra's, with a user's mistakes in one sentence.

Only Hydra is imported before a job runs, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig

from src.launch.hydra_launcher import check_choices, register, spell_out
from src.messages import UserMistake, run_hydra

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("scaling", "network", "data", "recipe", "hardware", "tracking", "launcher")
SHORTHAND = {"budget": "budget.multiple"}


def start(run_all: Callable[[list[DictConfig]], list[int]]) -> int:
    """Compose what the command line asks for and hand all of it to `run_all`; returns the exit code of the program.

    Args:
        run_all: takes the resolved config of every job, returns an exit code for each.
    """

    @hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
    def main(composed: DictConfig) -> None:
        """One job, as a sweep of one."""
        try:
            check_choices(HydraConfig.get().runtime.choices, GROUPS)
        except ConfigCompositionException as error:
            raise UserMistake(str(error)) from error
        code = run_all([composed])[0]
        if code:
            raise SystemExit(code)

    sys.argv[1:] = spell_out(sys.argv[1:], SHORTHAND)
    register(run_all, ROOT / "sweeps", GROUPS, SHORTHAND)
    return run_hydra(main, ROOT / "conf")

"""The command line of `python -m src.run` and the verbs beside it: Hydra's, with a user's mistakes in one sentence.

Only Hydra is imported before a job runs, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig

from src.launch.hydra_launcher import LAUNCHER, JobError, check_job, register, spell_out
from src.messages import UserMistake, run_hydra

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("scaling", "network", "data", "recipe", "hardware", "tracking", "launcher")
SHORTHAND = {
    "budget": "budget.multiple",
    "on_failure": "launcher.on_failure",
    "retry_failed": "launcher.retry_failed",
}


def start(
    run_all: Callable[[list[DictConfig]], list[int]], preflight: Callable[[list[DictConfig]], list[int]] | None = None
) -> int:
    """Compose what the command line asks for and hand all of it to `run_all`; returns the exit code of the program.

    Args:
        run_all: takes the resolved config of every job, returns an exit code for each.
        preflight: called before another launcher than ours gets the jobs; takes their configs, returns the numbers of
            those to run.
    """

    @hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
    def main(composed: DictConfig) -> None:
        """One job, as a sweep of one."""
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
        if not multirun and launcher not in (LAUNCHER, "basic"):
            raise UserMistake(f"hydra/launcher={launcher} starts the arms of a sweep, add -m")
        with _failing_alone() if multirun else contextlib.nullcontext():
            try:
                check_job(HydraConfig.get(), composed, GROUPS)
            except ConfigCompositionException as error:
                raise UserMistake(str(error)) from error
            code = run_all([composed])[0]
            if code:
                raise SystemExit(code)

    sys.argv[1:] = spell_out(sys.argv[1:], SHORTHAND)
    register(run_all, ROOT / "sweeps", GROUPS, SHORTHAND, preflight)
    return run_hydra(main, ROOT / "conf")


@contextlib.contextmanager
def _failing_alone() -> Iterator[None]:
    """For one job of another launcher than ours: SystemExit would end Hydra's whole sweep, or leave a SLURM job without
    a result, for which its launcher then waits.

    Raises:
        JobError: the job failed. Where a signal ended it, SystemExit passes: the sweep ends, or SLURM runs it again.
    """
    try:
        yield
    except UserMistake as mistake:
        raise JobError(mistake.message) from mistake
    except SystemExit as stop:
        if stop.code != 1:
            raise
        raise JobError("the arm did not finish") from stop

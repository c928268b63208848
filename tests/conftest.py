"""Settings for the whole suite, made before anything imports torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Tests run side by side on few cores: one thread each, and waiting threads sleep. Children inherit both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Tests change HOME; kernels compiled and steps timed on this machine stay the machine's.
os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
# And matplotlib would look through all fonts each time.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))

# A shell starts background jobs with SIGINT ignored, nohup with SIGHUP, and what is ignored is inherited; the tests of
# ended sweeps need both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Workers take files in this order: the long ones first, or the last minutes belong to one worker.
LONGEST_FIRST = (
    "test_faults",
    "test_end_to_end",
    "test_scaling_currency",
    "test_bad_input",
    "test_ddp",
    "test_wandb_run",
    "test_published_studies",
    "test_scaling_solve",
    "test_explain",
    "test_scaling_matrix",
    "test_training_fit",
    "test_training_checkpoints",
    "test_training_plan",
    "test_sweeps",
    "test_processes",
    "test_training_limits",
    "test_other_launchers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file nothing moves."""
    places = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print where each of the 55 known defects was caught (`tests/mutations`)."""
    tried = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind) if _is_mutant(r)]
    if not tried:
        return
    caught = [row for report in tried for name, row in report.user_properties if name == "caught"]
    caught.sort(key=lambda row: (row[0][0] != "H", int(row[0][1:])))
    terminalreporter.section(f"catch matrix: {len(caught)} of {len(tried)} mutants caught")
    for row, guard, kind, where, fault in caught:
        terminalreporter.line(f"{row:<4} {guard:<4} {kind:<9} {where:<18} {fault}")
    for report in tried:
        if report.failed:
            terminalreporter.line(f"NOT CAUGHT {report.nodeid}", red=True)


def _is_mutant(report: pytest.TestReport) -> bool:
    return report.when == "call" and "test_the_mutant_is_caught" in report.nodeid

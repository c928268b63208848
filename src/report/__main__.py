"""`python -m src.report outputs/STUDY`: write and print the report of a study, finished or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.choices import Parser
from src.report.console import make_console
from src.report.verify import told, verify
from src.report.write import render, write_report

HELP = """\
Reads record.json, status.json, history.csv, predictions.npz and cam.npz of every arm in PATH, and the study's
claims.json, plan.json and extrapolation.json (nothing is trained, nothing is loaded on a GPU, nothing is asked of W&B)
and writes into PATH:

  report.html           all of it on one page that needs no network: sortable, printable, every number leads to its runs
  summary.md            table, verdict, warnings, and where each number comes from
  summary.csv           one row per finished run, every field of its record
  summary.json          the same for programs: runs, rows, findings, sentences, files
  accuracy_vs_macs.png  test accuracy over cost, every seed visible; also .svg, and .csv of what it shows
  learning_curves.png   accuracy and losses per epoch; also .svg, and .csv of what it shows
  cam_grid.png          the same pictures through every arm's eyes; .csv: what each arm took them for
  looks.json            added to, never replaced: what was read when, at which error rate

With --verify nothing is written. Every file above is made anew in memory and compared with what lies in PATH, to the
byte, and every record with its run's predictions, learning curve and checkpoint: an edited digit is named.

Works while the sweep is still running: unfinished arms are listed with their state, and a verdict is given when half
and three quarters of the planned seeds have finished in every arm, more strictly than at the end.
Exit code: 0 with at least one finished arm, 2 without; with --verify 0 if all agrees and 1 if anything differs."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m src.report",
        description="Compare the arms of a study from their records.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="study folder, for example outputs/cifar10-2x")
    parser.add_argument("--verify", action="store_true", help="recompute the report that is there; writes nothing")
    try:
        asked = parser.parse_args(arguments)
        if asked.verify:
            verified = verify(asked.path)
            print(told(verified, asked.path))
            return int(bool(verified.differences))
        report = write_report(asked.path)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    render(report, make_console())
    return 0


if __name__ == "__main__":
    sys.exit(main())

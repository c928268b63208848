"""`python -m src.optimum outputs/STUDY`: the best exponents that a study's runs support, and a rule made of them."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from src.choices import Parser
from src.report.console import make_console
from src.report.optimum import check_name, choose, next_command, render, write_optimum, write_rule

RULES = Path(__file__).resolve().parent.parent / "conf" / "scaling"

HELP = """\
Fits a quadratic surface to the VALIDATION accuracy of the study's scaled arms over their realised shares of depth,
width and resolution, one surface for every network, data set and budget. It needs 7 different networks and about
two seeds each; +sweep=coefficient_search has 11 and three. The test split plays no part in it.

The answer is one of: optimum; flat; lack of fit; too few points/seeds; not assessable. Only the first names a best
point, with joint 95 % intervals.

Writes into PATH:
  optimum.json   points, surface, tests, answer
  optimum.png    the triangle of shares: points, fitted surface, optimum and its region

Examples:
  python -m src.run -m +sweep=coefficient_search
  python -m src.optimum outputs/coefficient_search
  python -m src.optimum outputs/coefficient_search --write mine
  python -m src.run -m scaling=mine,compound

Works while the sweep is still running. How to read the answer: docs/coefficient_search.md.
Exit code: 0, or 2 for a mistake told in one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m src.optimum",
        description="Find the best way to divide a budget among depth, width and resolution.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="study folder, for example outputs/coefficient_search")
    parser.add_argument("--write", metavar="NAME", help="write the optimum to conf/scaling/NAME.yaml, for scaling=NAME")
    parser.add_argument(
        "--budget", type=float, metavar="B", help="the budget that --write takes, if PATH holds several"
    )
    parser.add_argument("--force", action="store_true", help="--write also where no optimum can be named; labelled so")
    try:
        given = parser.parse_args(arguments)
        if given.write is None and (given.force or given.budget is not None):
            raise ValueError("--force and --budget say what to write; give the rule's name too, as in --write mine")
        rule = None if given.write is None else check_name(given.write, RULES)
        report = write_optimum(given.path)
        console = make_console()
        render(report, console)
        if rule is not None:
            found = choose(report.searches, given.budget, given.force)
            write_rule(rule, found, report, datetime.datetime.now(datetime.UTC).date())
            console.print(f"Wrote {rule}; test it with seeds that had no part in it:", soft_wrap=True, highlight=False)
            console.print(f"  {next_command(given.write, found)}", soft_wrap=True, highlight=False)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m src.extrapolate outputs/STUDY --to 8`: what larger budgets will give, written down before they are run."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from src.choices import Parser
from src.record import CURRENCY_LABELS, METRICS
from src.report.ahead import EXTRAPOLATION_FILE, Ahead, register
from src.report.console import make_console, print_whole
from src.report.extrapolated import forecast

HELP = """\
Fits the test accuracy of every arm over log cost, from the runs in PATH that have finished, and forecasts it at larger
costs with 95 % prediction intervals: for the mean over seeds, for a single run, and for the difference of any two arms.

It takes two budgets or more with 3 seeds each; the base, which all arms start from, counts as one. Intervals hold the
noise between seeds and all shapes that the runs leave open, from no further change to a straight line. They hold
nothing about arms that turn round or accelerate beyond what was run. How it is done, and how often it was right on
simulated studies: docs/extrapolation.md.

Adds to PATH:
  extrapolation.json  each forecast with its date, the code's revision and the runs that it rests on; only ever added to

A forecast comes before the runs: none is written for a cost at which a run of that arm has finished or is under way.
Then run the larger budget in the same study; the report holds each forecast against what came. It is no verdict.

Examples:
  python -m src.run -m scaling=base,depth,width,compound budget=2,4 seed=0,1,2 study=mine
  python -m src.extrapolate outputs/mine --to 8
  python -m src.run -m scaling=depth,width,compound budget=8 seed=0,1,2 study=mine
  python -m src.report outputs/mine

Exit code: 0, or 2 for a mistake told in one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m src.extrapolate",
        description="Forecast larger budgets from the small ones that have been run, before they are run.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="study folder, for example outputs/mine")
    parser.add_argument(
        "--to",
        metavar="X",
        type=_cost,
        nargs="+",
        required=True,
        help="cost to forecast, as a multiple of the base's, in the currency of the study's budgets; several allowed",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        help="forecast the mean of so many seeds; default: as many as the arm with the fewest has",
    )
    try:
        given = parser.parse_args(arguments)
        from src.study import code_revision  # only now: it loads torch, which --help can do without

        entries, refused = forecast(given.path, given.to, given.seeds, datetime.now(UTC), code_revision())
        entries = list(register(given.path, entries))
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    console = make_console()
    for entry in entries:
        _show(entry, console)
    if refused:
        console.print(Text("\nNot forecast", style="bold"))
    for line in refused:
        console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 2)))
    kept = given.path / EXTRAPOLATION_FILE
    console.print(
        f"\nKept in {kept}. Run the larger budget in the same study; python -m src.report {given.path} then holds the"
        " forecast against it.",
        highlight=False,
        markup=False,
    )
    return 0


def _cost(text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = 0.0
    if not 0 < cost < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no multiple of the base's cost, such as 8")
    return cost


def _show(entry: Ahead, console: Console) -> None:
    """Print one forecast: its arms, the differences between them, and what must be known to read them."""
    digits = METRICS["test_accuracy"].digits
    title = (
        f"{entry.network} on {entry.data} at {entry.cost:g}x {CURRENCY_LABELS[entry.currency]}, mean of"
        f" {entry.seeds} seeds, forecast on {entry.written}"
    )
    console.print(Text(f"\n{title}", style="bold"))
    table = _table(
        "arm", "from budgets (x)", METRICS["test_accuracy"].label, "95 % interval", "of a single run", "shape"
    )
    for arm in entry.arms:
        e = arm.expected
        table.add_row(
            Text(arm.name),
            ", ".join(f"{budget:.3g}" for budget in arm.budgets),
            f"{e.value:.{digits}f}",
            f"{e.low:.{digits}f} to {e.high:.{digits}f}",
            f"{e.run_low:.{digits}f} to {e.run_high:.{digits}f}",
            " to ".join(f"{shape:.2f}" for shape in arm.shapes),
        )
    print_whole(console, table)
    if entry.differences:
        table = _table("difference", "pp", "95 % interval", "of single runs", "order")
        for one in entry.differences:
            e = one.expected
            table.add_row(
                Text(f"{one.name} - {one.rival}"),
                f"{e.value:+.{digits}f}",
                f"{e.low:+.{digits}f} to {e.high:+.{digits}f}",
                f"{e.run_low:+.{digits}f} to {e.run_high:+.{digits}f}",
                "forecast" if one.claimed else "open",
            )
        console.print()
        print_whole(console, table)
    console.print(Text(f"Form: {entry.form}. Each interval holds alone, not all at once.", style="dim"))
    for note in entry.notes:
        console.print(Text(f"note: {note}", overflow="fold"))


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", header_style="dim", no_wrap=True)
    return table


if __name__ == "__main__":
    sys.exit(main())

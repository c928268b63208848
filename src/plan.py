"""Plan a sweep before spending anything on it: `python -m src.plan -m scaling=depth,width,compound seed=0,1,2`.

  python -m src.plan -m scaling=depth,width,compound seed=0,1,2                    what it costs here
  python -m src.plan -m +sweep=axes --effect 0.5 --sigma 0.3                       seeds that find 0.5 pp
  python -m src.plan -m +sweep=axes --effect 0.5 --pilot outputs/axes              the same, noise from a study's runs
  python -m src.plan -m +sweep=table7_matched data=imagenet --pictures 1281167,50000   pictures that are not here yet

Takes the same GROUP=OPTION and KEY=VALUE as `python -m src.run`, and:

  --effect PP           difference in test accuracy that the sweep should find, percentage points
  --sigma PP            standard deviation between seeds, percentage points: a prior, such as 0.1 to 0.3 for CIFAR-10 in
                        fully annealed runs, 0.5 to 4 for short runs of small networks
  --pilot PATH          take it from the finished runs of a study with two seeds an arm or more; of its deviation the
                        upper 80 % limit is planned with, or what the disagreement of its runs shows, if that is more
  --power SHARE         chance of finding the effect if it is there, 0.8
  --pictures TRAIN,TEST pictures of train/ and of the sealed split, where the data are not here
  --seconds N           for rehearsing the arms on this machine, 60 in all
  --fresh               rehearse again what is remembered

Prints the arms with their realised cost, what the design can resolve, what it takes here (seconds, memory, disk), and
the smaller designs that still resolve the effect. Nothing is trained to its end, and the test split stays sealed. The
forecast is kept in outputs/STUDY/plan.json. How it is made, and how good it was: docs/planning.md.
Exit code: 0, or 2 for a mistake told in one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from src.choices import Parser
from src.command import start
from src.messages import mistakes
from src.prospect import Wishes, plan_sweep
from src.study import CONF, plan_configs


def _two_counts(text: str) -> tuple[int, int]:
    train, _, test = text.partition(",")
    return int(train), int(test)


def parse(arguments: Sequence[str]) -> tuple[Wishes, list[str]]:
    """Wishes of the command line, and what is left for Hydra.

    Raises:
        ValueError: a value is impossible; one sentence.
    """
    parser = Parser(prog="python -m src.plan", add_help=False, allow_abbrev=False)
    for name in ("effect", "sigma", "power", "seconds"):
        parser.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS)
    parser.add_argument("--pilot", type=Path, default=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=_two_counts, default=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true")
    given, rest = parser.parse_known_args(arguments)
    return Wishes(**vars(given)), rest


def main() -> int:
    """Returns the exit code of the program."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        wishes, sys.argv[1:] = parse(arguments)
    except ValueError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2

    def here(configs: list[DictConfig], elsewhere: str = "") -> list[int]:
        _, arms = plan_configs(configs)
        with mistakes(CONF):
            plan_sweep(arms, wishes, elsewhere)
        return [0] * len(configs)

    def there(configs: list[DictConfig]) -> list[int]:
        here(configs, "these arms will run elsewhere: all seconds are those of this machine")
        return []  # nothing is handed to the other launcher

    return start(here, there)


if __name__ == "__main__":
    sys.exit(main())

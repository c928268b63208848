"""Guards over the records of a study (codes after the project's list of defects): what blocks a claim, what is a
warning.

G1 same network in two arms, or two networks in one; G2 units of cost; G3 unequal cost; G4 test split opened more than
once; G8 provenance; G9 recipe parity; G10 seeds, and noise of the test pictures; G11 chance level; G14 resolution
beyond the data; G15 environment. `src/report/evidence.py` looks into the folders of the runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from src.record import CURRENCY_LABELS, METRICS, RunRecord
from src.verdict.cells import Cell, by_budget
from src.verdict.grammar import Finding
from src.verdict.statistics import binomial_se, spread

LEAST_SEEDS = 3
SPREAD_BLOCKS = 0.02
SPREAD_WARNS = 0.01
MEASURED_SPREAD_BLOCKS = 0.05  # of a currency that is read off a clock
PARITY = ("recipe", "recipe_hash", "epochs", "data_fingerprint")
ENVIRONMENT = ("device", "precision", "torch_version")
VERSIONS = ("python_version", "torch_version", "lightning_version", "fvcore_version")
# fvcore's total adds batch norm and pooling to the MACs, a few percent. MACs that were counted as two FLOPs each would
# lie above it.
LARGEST_FVCORE_RATIO = 1.8
SPEED = ("threads", "kernels", "step")  # other times and last digits, the same training


def check(cells: Sequence[Cell]) -> tuple[Finding, ...]:
    """All findings of one network on one data set: blocking ones first, then by guard number."""
    found: list[Finding] = []
    for budget, group in by_budget(cells).items():
        found += _cost(budget, group)
        found += _same_network(budget, group)
        found += _seeds(budget, group)
        found += _native(budget, group)
        found += _pictures(budget, group)
        for field in PARITY:
            if not (field == "epochs" and group[0].first.currency == "train_macs"):  # there lengths are solved for
                found += _parity(budget, group, field)
        found += _mixed(budget, group, "G8", "code_revision")
        for field in ENVIRONMENT:
            found += _mixed(budget, group, "G15", field)
        for field in SPEED:
            found += _mixed(budget, group, "G15", field, blocks=False)
        found += _mixed(budget, group, "G9", "micro_batch", blocks=False)  # batch norm saw more pictures in some arms
    for cell in cells:
        found += _cell(cell)
    found += _across(cells, found)
    found += _revisions(cells)
    found += _versions(cells)
    found += _notes(cells)
    return tuple(sorted(set(found), key=lambda f: (not f.blocking, _number(f.guard), f.budget or 0, f.arms, f.text)))


def wanted_seeds(seeds: Sequence[int]) -> str:
    """The Hydra override that completes `seeds` to the least number that a verdict needs."""
    wanted = sorted(set(seeds))
    candidate = 0
    while len(wanted) < LEAST_SEEDS:
        if candidate not in wanted:
            wanted = sorted([*wanted, candidate])
        candidate += 1
    return "seed=" + ",".join(map(str, wanted))


def at_chance(record: RunRecord) -> bool:
    """Whether the test accuracy is no more than two binomial standard errors above guessing."""
    chance = 1 / record.classes
    return record.test_accuracy <= chance + 2 * binomial_se(chance, record.test_pictures)


def _cost(budget: float, group: list[Cell]) -> Iterator[Finding]:
    currencies = sorted({r.currency for cell in group for r in cell.records})
    if len(currencies) > 1:
        text = f"budgets are counted in different currencies ({_by_cell(group, 'currency')})"
        yield Finding("G3", True, text, "count the whole study in one currency", budget)
        return
    prices = {cell.name: max(cell.values("price")) for cell in group}
    width = spread(list(prices.values()))
    blocks = MEASURED_SPREAD_BLOCKS if currencies == ["latency_s"] else SPREAD_BLOCKS
    if width <= (blocks if currencies == ["latency_s"] else SPREAD_WARNS):
        return
    low, high = min(prices, key=prices.__getitem__), max(prices, key=prices.__getitem__)
    text = (
        f"realised {CURRENCY_LABELS[currencies[0]]} differ by {100 * width:.1f} % between {low}"
        f" ({_amount(currencies[0], prices[low])}) and {high} ({_amount(currencies[0], prices[high])}),"
        f" {100 * blocks:g} % is allowed"
    )
    yield Finding("G3", width > blocks, text, "solve the arms to one budget in one sweep", budget)


def _same_network(budget: float, group: list[Cell]) -> Iterator[Finding]:
    builds: dict[tuple[str, int], list[Cell]] = {}
    for cell in group:
        networks = {(r.architecture_sha256, r.resolution, r.macs) for r in cell.records}
        if len(networks) > 1:
            text = f"the seeds of {cell.name} trained {len(networks)} different networks"
            yield Finding(
                "G1", True, text, "run all seeds of an arm with one code and one config", budget, (cell.name,)
            )
        builds.setdefault((cell.first.architecture_sha256, cell.first.resolution), []).append(cell)
    for twins in builds.values():
        if len({cell.arm for cell in twins}) > 1:
            names = tuple(cell.name for cell in twins)
            text = f"{_and(names)} trained the same network at the same resolution"
            yield Finding("G1", True, text, "ask for arms that the budget can tell apart", budget, names)


def _seeds(budget: float, group: list[Cell]) -> Iterator[Finding]:
    few = [cell for cell in group if len(cell.seeds) < LEAST_SEEDS]
    if few:
        counts = sorted({len(cell.seeds) for cell in few})
        words = " or ".join({1: "one seed", 2: "two seeds"}[n] for n in counts)
        text = (
            f"{_and([c.name for c in few])} {'has' if len(few) == 1 else 'have'} {words}, a verdict needs {LEAST_SEEDS}"
        )
        override = wanted_seeds([seed for cell in group for seed in cell.seeds])
        yield Finding("G10", True, text, f"add `{override}` to the command", budget, tuple(c.name for c in few))
    elif len({cell.seeds for cell in group}) > 1:
        listed = "; ".join(f"{c.name} {', '.join(map(str, c.seeds))}" for c in group)
        yield Finding("G10", False, f"arms ran different seeds ({listed})", "run the same seeds in every arm", budget)


def _native(budget: float, group: list[Cell]) -> Iterator[Finding]:
    above = [cell for cell in group if cell.first.resolution > cell.first.native_resolution]
    if above:
        sizes = _and([f"{cell.name} at {cell.first.resolution} px" for cell in above])
        text = (
            f"{sizes}: above the {above[0].first.native_resolution} px of the data, which adds compute, not information"
        )
        remedy = "use data stored at a higher resolution to judge this axis"
        yield Finding("G14", False, text, remedy, budget, tuple(cell.name for cell in above))


def _pictures(budget: float, group: list[Cell]) -> Iterator[Finding]:
    """Differences between means that the choice of test pictures alone explains."""
    means = [100 * sum(r.test_accuracy for r in cell.records) / len(cell.records) for cell in group]
    count = min(r.test_pictures for cell in group for r in cell.records)
    if len(group) < 2 or count < 1:
        return
    middle = sum(means) / len(means)
    error = 100 * binomial_se(middle / 100, count)
    apart = max(means) - min(means)
    if 0 < apart < error:
        text = (
            f"all arms lie within {apart:.2f} pp of one another, and {count:,} test pictures alone are worth"
            f" {error:.2f} pp (one standard error)"
        )
        yield Finding("G10", False, text, "test on more pictures; more seeds do not help against that", budget)


def _parity(budget: float, group: list[Cell], field: str) -> Iterator[Finding]:
    if len(_values(group, field)) > 1:
        remedy = "train all arms alike, or give each setting a study of its own"
        yield Finding("G9", True, f"{field} differs between runs ({_by_cell(group, field)})", remedy, budget)


def _mixed(budget: float, group: list[Cell], guard: str, field: str, blocks: bool = True) -> Iterator[Finding]:
    if len(_values(group, field)) < 2:
        return
    mixes = {frozenset(Counter(getattr(r, field) for r in cell.records).items()) for cell in group}
    # The same mixture in every arm adds noise to all of them; another mixture in one arm could be its whole advantage.
    confounds = len(mixes) > 1
    text = f"{field} differs {'between arms' if confounds else 'within every arm alike'} ({_by_cell(group, field)})"
    yield Finding(guard, confounds and blocks, text, "re-run the odd ones in one environment from one commit", budget)


def _across(cells: Sequence[Cell], found: Sequence[Finding]) -> Iterator[Finding]:
    """Differences between budgets, or between the base and the rest, which no single budget shows."""
    fields = [("G8", "code_revision"), *(("G9", f) for f in PARITY), *(("G15", f) for f in (*ENVIRONMENT, *SPEED))]
    for guard, field in fields:
        if field == "epochs" and all(c.first.currency == "train_macs" for c in cells):
            continue
        named = any(f.guard == guard and f.text.startswith(f"{field} ") for f in found)
        if len(_values(cells, field)) > 1 and not named:
            text = f"{field} differs between budgets, or between the base and the arms ({_by_cell(cells, field)})"
            yield Finding(guard, False, text, "compare rows of different budgets with care")


def _revisions(cells: Sequence[Cell]) -> Iterator[Finding]:
    revisions = {str(value) for value in _values(cells, "code_revision")}
    if any(not value or value == "unknown" for value in revisions):
        yield Finding("G8", False, "some runs do not say which code made them", "run from a git checkout")
    if any("+" in value or "dirty" in value for value in revisions):
        yield Finding("G8", False, "some runs were made by uncommitted code", "commit, then run")


def _versions(cells: Sequence[Cell]) -> Iterator[Finding]:
    """Packages that a run does not name, among runs that do name some."""
    records = [record for cell in cells for record in cell.records]
    silent = [field for field in VERSIONS if not all(getattr(r, field) for r in records)]
    if silent and any(getattr(r, field) for field in VERSIONS for r in records):
        text = f"some runs do not say their {_and([field.replace('_', ' ') for field in silent])}"
        yield Finding("G8", False, text, "re-run them: they cannot be repeated as they are")


def _units(record: RunRecord) -> str:
    """What in a record's costs cannot be counts of multiply-adds of one network; empty: nothing."""
    if record.macs <= 0:
        return f"a network of {record.macs:,} MACs is none"
    if record.fvcore_total and not record.macs <= record.fvcore_total <= LARGEST_FVCORE_RATIO * record.macs:
        return f"{record.macs:,} MACs stand beside fvcore's total of {record.fvcore_total:,}"
    if record.currency == "macs" and record.price != record.macs:
        return f"{record.macs:,} MACs stand beside a price of {record.price:,.0f} in MACs"
    if record.steps and record.train_macs and record.train_macs % (3 * record.macs):
        return f"{record.train_macs:,} training MACs are no multiple of three times {record.macs:,} MACs"
    return ""


def _cell(cell: Cell) -> Iterator[Finding]:
    budget = cell.budget
    openings = {r.seed: r.test_openings for r in cell.records if r.test_openings != 1}
    if openings:
        listed = ", ".join(f"{n} times with seed {seed}" for seed, n in openings.items())
        remedy = "re-run it, the test split must be opened once"
        yield Finding("G4", True, f"{cell.name} opened the test split {listed}", remedy, budget, (cell.name,))
    if len(cell.seeds) < len(cell.records):
        double = sorted({r.seed for r in cell.records if sum(s.seed == r.seed for s in cell.records) > 1})
        text = f"{cell.name} has two or more runs with seed {', '.join(map(str, double))}, which are not independent"
        yield Finding("G10", True, text, "move all but one of their folders out of the study", budget, (cell.name,))
    elif len({r.weights_sha256 for r in cell.records}) < len(cell.records):
        text = f"{cell.name} has the same trained weights under different seeds"
        yield Finding("G10", True, text, "check that the seed reaches training", budget, (cell.name,))
    for record in cell.records:
        if wrong := _units(record):
            text = f"{cell.name} with seed {record.seed}: {wrong}: units are mixed"
            yield Finding("G2", True, text, "re-run it, costs are counted anew then", budget, (cell.name,))
    chance = [r.seed for r in cell.records if at_chance(r)]
    if chance:
        text = f"{cell.name} is at chance ({100 / cell.first.classes:.1f} %) with seed {', '.join(map(str, chance))}"
        yield Finding("G11", True, text, "train longer or mend its recipe first", budget, (cell.name,))


def _notes(cells: Sequence[Cell]) -> Iterator[Finding]:
    """What runs said of themselves: what several say alike, once."""
    speakers: dict[tuple[float, str], dict[str, list[int]]] = {}
    for cell in cells:
        for record in cell.records:
            if text := " ".join(record.notes.split()).rstrip("."):
                speakers.setdefault((cell.budget, text), {}).setdefault(cell.name, []).append(record.seed)
    for (budget, text), names in speakers.items():
        listed = _and([f"{name} with seed {', '.join(map(str, seeds))}" for name, seeds in names.items()])
        yield Finding("note", False, f"{listed}: {text}", "", budget, tuple(names))


def _values(cells: Sequence[Cell], field: str) -> set[object]:
    return {value for cell in cells for value in cell.values(field)}


def _by_cell(cells: Sequence[Cell], field: str) -> str:
    """Which cells hold which value: `cpu: compound, depth; cuda: width`."""
    holders: dict[str, dict[str, None]] = {}
    for cell in cells:
        for value in cell.values(field):
            holders.setdefault(str(value)[:24] or "nothing", {})[cell.name] = None
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in sorted(holders.items()))


def _amount(currency: str, price: float) -> str:
    metric = METRICS["macs"]
    return f"{metric.format(metric.transform(price))} M" if currency == "macs" else f"{price:.4g}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(guard: str) -> int:
    return int(guard[1:]) if guard[1:].isdigit() else 99

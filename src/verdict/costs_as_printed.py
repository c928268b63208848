"""Networks that were not scaled, units that do not agree, costs that no network has, budgets that do not match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from src.verdict.findings import Certainty, Finding, Severity, listing, millions, names_of, said, span_of, verb_s
from src.verdict.fit import (
    MOST_OVERHEAD,
    ONE_NETWORK,
    ROUNDING_SLACK,
    UNITS,
    Fit,
    Reading,
    Twin,
    apart,
    grows,
    least_params,
    params_fit,
    power_of_ten,
    stated_costs,
)
from src.verdict.guards import SPREAD_BLOCKS
from src.verdict.printed import Kind, Table
from src.verdict.statistics import spread

_COUNT_PARAMETERS = (
    "The number of elements of the weights of each module that was trained (from their shapes, not from attributes that"
    " code can edit), or its checkpoint."
)
_NAME_THE_COUNTER = "The counter, its version and its raw output for each row; then the whole column in one unit."


def against_twins(table: Table, fit: Fit, readings: Sequence[Reading]) -> Iterator[Finding]:
    """What only a twin can show: G1 and G2."""
    yield from _same_params(table, fit, readings)
    yield from _follows_pixels(table, fit, readings)
    yield from _params(table, fit, readings)
    yield from _units(table, fit, readings)
    yield from _off_the_counter(table, fit, readings)
    yield from _no_network(table, fit, readings)


def without_twins(table: Table, fit: Fit | None, readings: Sequence[Reading]) -> Iterator[Finding]:
    """What the printed numbers show among themselves: G3, G9 and, where no network fits, G1."""
    if fit is None:
        yield from _equal_params(table)
    yield from _budgets(table, fit, readings)
    yield from _pixels(table, readings)


def not_the_network(table: Table, twin: Twin) -> Iterator[Finding]:
    """The base row prints what the named network does not have in any unit."""
    base = table.base_arm
    if base is None or (base.params is None and base.cost is None):
        return
    px = base.px or twin.pixels
    costs = Fit.of(twin, px).costs
    printed = [f"{millions(base.params.value)} M parameters"] if base.params is not None else []
    printed += [f"{millions(base.cost.value)} M of cost"] if base.cost is not None else []
    yield Finding(
        "G13",
        Severity.FAULT,
        Certainty.CANNOT,
        (base.name,),
        f"{base.name} prints {' and '.join(printed)}, which is not {twin.network}.",
        f"At {px} px and {twin.classes} classes its twin counts {millions(costs.params[0])} M parameters and"
        f" {millions(costs.macs[0])} M MACs; no unit, and no overhead up to {MOST_OVERHEAD:g} per conv output, makes"
        " one of the other.",
        "The shapes of all weights of the base that was trained, beside those of the reference implementation.",
    )


def _equal_params(table: Table) -> Iterator[Finding]:
    base = table.base_arm
    if base is None or base.params is None:
        return
    same = names_of(
        arm for arm in table.arms if arm is not base and grows(arm) and arm.params and arm.params.equals(base.params)
    )
    if same:
        yield Finding(
            "G1",
            Severity.DOUBT,
            Certainty.UNSUPPORTED,
            same,
            f"{listing(same)} print{verb_s(same)} the {millions(base.params.value)} M parameters of {base.name}, though"
            " more blocks or channels are more parameters.",
            "Equal to all printed digits; without a network that fits, how many must be added is not known.",
            _COUNT_PARAMETERS,
        )


def _same_params(table: Table, fit: Fit, readings: Sequence[Reading]) -> Iterator[Finding]:
    base = table.base_arm
    rows = [r for r in readings if r.unscaled and r.arm.params is not None]
    if base is None or base.params is None or not rows:
        return
    sure, names = all(r.sure for r in rows), names_of(r.arm for r in rows)
    stated = "; ".join(f"{r.arm.name} ({said(r.arm)}) at least {millions(least_params(fit, r.arm))} M" for r in rows)
    unsure = "" if sure else " A step too small for the printed digits is not excluded where no factor is stated."
    yield Finding(
        "G1",
        Severity.FAULT if sure else Severity.DOUBT,
        Certainty.CANNOT if sure else Certainty.UNSUPPORTED,
        names,
        f"{listing(names)} print{verb_s(names)} the {millions(base.params.value)} M parameters of {base.name}: as"
        f" printed, {'this network was' if len(names) == 1 else 'these networks were'} not scaled in depth or width.",
        f"Whatever the rounding, {fit.twin.network} with {fit.twin.classes} classes has as stated: {stated}; unscaled"
        f" {millions(fit.costs.params[0])} M.{unsure}",
        _COUNT_PARAMETERS,
    )


def _follows_pixels(table: Table, fit: Fit, readings: Sequence[Reading]) -> Iterator[Finding]:
    """Costs of rows that were not scaled, against the base's cost at their pixels."""
    base = table.base_arm
    if base is None or base.cost is None or fit.overhead is None:
        return
    rows = [r for r in readings if r.unscaled and r.arm.cost is not None and r.predicted is not None]
    alike = [r for r in rows if abs(_excess(r)) <= ONE_NETWORK]
    if not alike:
        return
    plain, names, sure = float(fit.costs.macs[0]), names_of(r.arm for r in alike), all(r.sure for r in alike)
    ratios = "; ".join(
        f"{r.arm.name} at {r.px} px x {r.counted / plain:.3f} by the twin,"
        f" x {r.arm.cost.value / base.cost.value:.3f} as printed"
        for r in rows
        if r.arm.cost is not None and r.counted is not None
    )
    yield Finding(
        "G1",
        Severity.FAULT if sure else Severity.DOUBT,
        Certainty.CANNOT if sure else Certainty.UNSUPPORTED,
        names,
        f"The cost of {listing(names)} follows pixels alone: it is what the unscaled network costs there, to"
        f" {100 * max(abs(_excess(r)) for r in alike):.2f} %.",
        f"Multiples of {base.name} at {fit.px} px ({millions(plain)} M MACs by the twin, {millions(base.cost.value)} M"
        f" printed: its counter adds {fit.overhead:.2f} operations per conv output): {ratios}.",
        "A count of blocks and channels in each module that was trained.",
    )


def _params(table: Table, fit: Fit, readings: Sequence[Reading]) -> Iterator[Finding]:
    """Parameters in a wrong unit, and parameters that no network as stated has."""
    base = table.base_arm
    known = f"{fit.twin.network} with {fit.twin.classes} classes has"
    if fit.params_unit != 1.0 and base is not None and base.params is not None:
        meaning = "bytes in float32" if fit.params_unit == 4.0 else f"{fit.params_unit:g} times the parameters"
        yield Finding(
            "G2",
            Severity.FAULT,
            Certainty.CANNOT,
            names_of(arm for arm in table.arms if arm.params is not None),
            f"The column {table.headings['params']!r} holds {meaning}: {base.name} prints {base.params.value:.4g}.",
            f"{known} {millions(fit.costs.params[0])} M.",
            _COUNT_PARAMETERS,
        )
    for r in readings:
        stated = stated_costs(table, fit, r.arm)
        if r.unscaled or stated is None or r.arm.params is None or r.arm is base:
            continue
        if not params_fit(r.arm.params, stated, fit.params_unit):
            sure = r.arm.factors  # a name alone may be short for more than one axis
            yield Finding(
                "G1",
                Severity.FAULT if sure else Severity.DOUBT,
                Certainty.CANNOT if sure else Certainty.UNSUPPORTED,
                (r.arm.name,),
                f"{r.arm.name} ({said(r.arm)}) prints {millions(r.arm.params.value)} M parameters, which no network"
                " scaled so has.",
                f"{known} then {span_of(stated.params)} M, whatever the rounding.",
                _COUNT_PARAMETERS,
            )


def _units(table: Table, fit: Fit, readings: Sequence[Reading]) -> Iterator[Finding]:
    """One unit for the column, and the one its heading names."""
    known = [r for r in readings if r.units]
    if not known:
        return
    shared = set.intersection(*(set(r.units) for r in known))
    if not shared:
        yield _mixture(table, fit, known)
        return
    unit = fit.cost_unit if fit.cost_unit in shared else min(shared)
    assert unit is not None
    heading = table.headings["cost"]
    if unit in UNITS and not (unit == 2.0 and table.counts_macs):
        return
    example = next((r for r in known if r.arm.name == table.base), known[0])
    assert example.arm.cost is not None and example.counted is not None
    yield Finding(
        "G2",
        Severity.FAULT,
        Certainty.CANNOT,
        names_of(r.arm for r in known),
        f"The column {heading!r} holds {_unit_words(unit)} in every row that can be checked.",
        f"{example.arm.name} prints {millions(example.arm.cost.value)} M and its network has"
        f" {millions(example.counted)} M MACs, a factor of"
        f" {example.arm.cost.value / example.counted:.4g}; a counter's additions explain at most"
        f" {1 + _most_added(known):.2f}.",
        _NAME_THE_COUNTER,
    )


def _mixture(table: Table, fit: Fit, known: Sequence[Reading]) -> Finding:
    """Rows that no single unit explains."""
    votes = {unit: sum(unit in r.units for r in known) for r in known for unit in r.units}
    usual = max(votes, key=lambda unit: (votes[unit], unit == fit.cost_unit, -unit))
    odd = [r for r in known if usual not in r.units]
    rest = [r for r in known if usual in r.units]

    def shown(rows: Sequence[Reading]) -> str:
        return "; ".join(
            f"{r.arm.name} {millions(r.arm.cost.value)} / {millions(r.counted)} = {r.arm.cost.value / r.counted:.3f}"
            for r in rows
            if r.arm.cost is not None and r.counted is not None
        )

    other = {unit for r in odd for unit in r.units}
    converted = ", ".join(
        f"{r.arm.name} would print {millions(r.arm.cost.value * usual / r.units[0])} M"
        + (f" (by the base's counter {millions(usual * _by_base(fit, r))} M)" if fit.overhead is not None else "")
        for r in odd
        if r.arm.cost is not None
    )
    rivals = [r for r in known if r.arm.name != table.base]
    dearest = max(rivals, key=lambda r: r.macs or 0.0, default=None)
    tail = f", which makes {dearest.arm.name} the dearest arm" if dearest in odd else ""
    printed = sorted((r.arm.cost.value, r.arm.name) for r in rivals if r.arm.cost is not None)
    if dearest is not None and tail and printed[0][1] == dearest.arm.name:
        tail += "; as printed it is the cheapest of the scaled ones"
    return Finding(
        "G2",
        Severity.FAULT,
        Certainty.CANNOT,
        names_of(r.arm for r in known),
        f"Two units stand in the column {table.headings['cost']!r}: {listing(names_of(r.arm for r in rest))}"
        f" hold{verb_s(rest)}"
        f" {_unit_words(usual)}, {listing(names_of(r.arm for r in odd))} {_unit_words(min(other))}. In the others' unit"
        f" {converted}{tail}.",
        f"Printed over MACs of the twin ({fit.twin.network}, {fit.twin.classes} classes, as stated, M): {shown(rest)};"
        f" against {shown(odd)}. Rounding of factors and what a counter may add (up to {MOST_OVERHEAD:g} operations per"
        f" conv output, {100 * _most_added(known):.0f} % here) cannot turn one into the other.",
        _NAME_THE_COUNTER,
    )


def _by_base(fit: Fit, reading: Reading) -> float:
    """MACs and overhead that the base's counter would find in a row's network."""
    assert reading.costs is not None and fit.overhead is not None
    return float(reading.costs.macs[0] + fit.overhead * reading.costs.activations[0])


def _most_added(known: Sequence[Reading]) -> float:
    """The largest share that a counter may add to the MACs of these rows."""
    return max(MOST_OVERHEAD * float(r.costs.activations[0] / r.costs.macs[0]) for r in known if r.costs is not None)


def _unit_words(unit: float) -> str:
    if unit in UNITS:
        return "MACs" if unit == 1.0 else "twice the MACs (a multiply and an add counted apart)"
    power = power_of_ten(unit)
    return f"{power:g} times {_unit_words(round(unit / power))} (K, M and G confused)"


def _off_the_counter(table: Table, fit: Fit, readings: Sequence[Reading]) -> Iterator[Finding]:
    """Rows whose network is known and whose cost the base's own counter would not print."""
    off = [r for r in readings if _known_exactly(table, r) and abs(_excess(r)) > ONE_NETWORK]
    if not off:
        return
    names = names_of(r.arm for r in off)
    shown = "; ".join(
        f"{r.arm.name} {millions(r.arm.cost.value)} M against {millions(r.predicted.value)} M at {r.px} px"
        f" ({100 * _excess(r):+.1f} %)"
        for r in off
        if r.arm.cost is not None and r.predicted is not None
    )
    edited = (
        " A counter that reads attributes (such as out_channels) instead of weights prints such an excess when code"
        " edits the attributes."
    )
    sure = all(r.sure or r.arm.factors for r in off)
    yield Finding(
        "G2",
        Severity.FAULT if sure else Severity.DOUBT,
        Certainty.CANNOT if sure else Certainty.UNSUPPORTED,
        names,
        f"{listing(names)} print{verb_s(names)} a cost that"
        f" {'its network does' if len(names) == 1 else 'their networks do'} not have: {shown}.",
        f"Unscaled as {'its' if len(names) == 1 else 'their'} parameters or factors show, and counted as {table.base}"
        f" was: MACs and {fit.overhead:.2f} operations per conv output."
        + (edited if any(r.unscaled and _excess(r) > 0 for r in off) else ""),
        "Counts by a tool that executes the module, on the module that was trained.",
    )


def _known_exactly(table: Table, reading: Reading) -> bool:
    """Whether one network alone can be meant, in a unit that is known; the base is what others are measured by."""
    if reading.costs is None or not reading.costs.exact or reading.predicted is None or reading.arm.cost is None:
        return False
    return reading.arm.name != table.base and (bool(reading.units) or reading.unscaled)


def _no_network(table: Table, fit: Fit, readings: Sequence[Reading]) -> Iterator[Finding]:
    """Costs outside of everything that is stated."""
    for r in readings:
        if r.arm.cost is None or r.costs is None or r.units or _known_exactly(table, r) or r.arm.name == table.base:
            continue
        unit, sure = r.unit or 1.0, r.arm.factors
        low, high = float(r.costs.macs.min()), float((r.costs.macs + MOST_OVERHEAD * r.costs.activations).max())
        yield Finding(
            "G2",
            Severity.FAULT if sure else Severity.DOUBT,
            Certainty.CANNOT if sure else Certainty.UNSUPPORTED,
            (r.arm.name,),
            f"{r.arm.name} ({said(r.arm)}) prints a cost of {millions(r.arm.cost.value)} M, which no network stated so"
            " has.",
            f"By the twin of {fit.twin.network} at {r.px} px, whatever the rounding, {millions(unit * low)} to"
            f" {millions(unit * high)} M in the table's unit with a counter's additions; and no other unit fits.",
            "Stage table, input side and counter of the module that was trained.",
        )


def _excess(reading: Reading) -> float:
    """Printed cost over what the table's counter would print, minus one; 0 within rounding."""
    assert reading.arm.cost is not None and reading.predicted is not None
    return apart(reading.arm.cost, reading.predicted)


def _budgets(table: Table, fit: Fit | None, readings: Sequence[Reading]) -> Iterator[Finding]:
    rows = [r for r in readings if r.arm.cost is not None and r.arm.name != table.base and r.arm.kind is not None]
    if len(rows) < 2:
        return

    def amount(r: Reading) -> float:
        assert r.arm.cost is not None
        return r.arm.cost.value / (r.unit or 1.0)

    low, high = min(rows, key=amount), max(rows, key=amount)
    parts = {r.arm.name: _core(fit, r) for r in rows}
    least = max(r.arm.cost.low * parts[r.arm.name][0] for r in rows if r.arm.cost is not None)
    most = min(r.arm.cost.high * parts[r.arm.name][1] for r in rows if r.arm.cost is not None)
    if least / most - 1.0 <= SPREAD_BLOCKS:
        return
    units = len({r.unit for r in rows if r.unit is not None}) > 1
    base = next((r for r in readings if r.arm.name == table.base and r.arm.cost is not None), None)
    as_printed = [r.arm.cost.value for r in (*rows, *([base] if base else [])) if r.arm.cost is not None]
    scaled = [r.arm.cost.value for r in rows if r.arm.cost is not None]
    derivation = f"As printed the scaled arms differ by a factor of {_times(scaled)}"
    derivation += f", with {table.base} {_times(as_printed)}." if base else "."
    if units:
        derivation += f" In one unit, by the printed numbers, {_times([amount(r) for r in rows])}."
    counted = [r.counted for r in rows if r.counted is not None]
    if len(counted) == len(rows):
        kinds = (
            "of the networks that their parameters show" if any(r.unscaled for r in rows) else "of the stated networks"
        )
        derivation += f" By MACs {kinds}, {_times(counted)}"
        if base is not None and base.counted is not None:
            derivation += f", with {table.base} {_times([*counted, base.counted])}"
        derivation += ": " + ", ".join(
            f"{r.arm.name} {millions(r.counted)} M" for r in (*([base] if base else []), *rows) if r.counted is not None
        )
        derivation += "."
    yield Finding(
        "G3",
        Severity.DOUBT,
        Certainty.UNSUPPORTED,
        names_of(r.arm for r in rows),
        f"The budgets are not matched: {high.arm.name} costs {amount(high) / amount(low):.2f} times what {low.arm.name}"
        f" costs{' in one unit' if units else ''}, so better or worse does not mean better or worse scaled."
        f" The dearest arm is {high.arm.name}.",
        derivation,
        f"Arms solved to one realised cost within {100 * SPREAD_BLOCKS:g} %, or a curve of accuracy over cost for each"
        " way of scaling.",
    )


def _core(fit: Fit | None, reading: Reading) -> tuple[float, float]:
    """What a printed cost is multiplied by, at least and at most, to give MACs: its unit, and without the additions of
    the base's counter, which are a larger part of narrow networks than of wide ones. A row in another unit was counted
    by another counter."""
    unit = reading.unit or 1.0
    if fit is None or fit.overhead is None or reading.arm.cost is None or unit != fit.cost_unit:
        return 1.0 / unit, 1.0 / unit
    costs = reading.costs or fit.costs
    counted = costs.macs + fit.overhead * costs.activations
    near = abs(counted * unit / reading.arm.cost.value - 1.0) <= ROUNDING_SLACK
    parts = (costs.macs / counted)[near if near.any() else slice(None)] / unit
    return float(parts.min()), float(parts.max()) if reading.costs is not None else 1.0 / unit


def _times(values: Sequence[float]) -> str:
    return f"{spread(values) + 1:.2f}"


def _pixels(table: Table, readings: Sequence[Reading]) -> Iterator[Finding]:
    base = next((r for r in readings if r.arm.name == table.base), None)
    if base is None or base.px is None:
        return
    moved = [r for r in readings if r.arm.kind in (Kind.DEPTH, Kind.WIDTH) and r.px is not None and r.px != base.px]
    if moved:
        alone = [r for r in readings if r.arm.kind is Kind.RESOLUTION]
        listed = ", ".join(f"{r.arm.name} {r.px}" for r in moved)
        yield Finding(
            "G9",
            Severity.DOUBT,
            Certainty.UNSUPPORTED,
            names_of(r.arm for r in moved),
            f"{listing(names_of(r.arm for r in moved))} {'has' if len(moved) == 1 else 'have'} other pixels than"
            f" {base.arm.name} ({listed}, against {base.px}): an effect of depth or width cannot be told from one of"
            " resolution.",
            "Input sides as printed."
            + ("" if alone else " No arm changes resolution alone, so that its part cannot be subtracted."),
            f"The same arms at {base.px} px, and an arm with more pixels alone.",
        )

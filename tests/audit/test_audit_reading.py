"""Tables as people print them: headings, units, digits; what is ambiguous is asked about in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.verdict.printed import Arm, Printed, dataset_facts, is_selected, kind_of, read_table


def one(heading: str, cell: str, delimiter: str = ",") -> Arm:
    """A table of one row and one column beside its name."""
    (arm,) = read_table(f'model{delimiter}"{heading}"\nbase{delimiter}"{cell}"\n').arms
    return arm


@pytest.mark.parametrize(
    ("heading", "cell", "value", "half"),
    [
        ("params", "4.02M", 4.02e6, 5e3),
        ("Params (M)", "4.02", 4.02e6, 5e3),
        ("#Params [M]", "4.020", 4.02e6, 5e2),
        ("params_m", "4.02", 4.02e6, 5e3),
        ("Parameters", "4,020,358", 4020358, 0.5),
        ("parameters", "4020358", 4020358, 0.5),
        ("params", "53.4 K", 53400, 50),
        ("Number of parameters", "5.3 million", 5.3e6, 5e4),
    ],
)
def test_parameters(heading: str, cell: str, value: float, half: float) -> None:
    params = one(heading, cell).params
    assert params is not None
    assert (params.value, params.half) == pytest.approx((value, half))


@pytest.mark.parametrize(
    ("heading", "cell", "value", "half"),
    [
        ("FLOPs (MMac)", "408.93", 408.93e6, 5e3),
        ("flops", "408.93 MMac", 408.93e6, 5e3),
        ("Our FLOPS", "0.82B", 0.82e9, 5e6),
        ("FLOPs (G)", "0.39", 0.39e9, 5e6),
        ("GFLOPs", "1.8", 1.8e9, 5e7),
        ("MMACs", "385.8", 385.8e6, 5e4),
        ("MACs", "385814752", 385814752, 0.5),
        ("Mult-Adds (B)", "0.39", 0.39e9, 5e6),
        ("flops_b", "0.39", 0.39e9, 5e6),
        ("FLOPs", "390 MFLOPs", 390e6, 5e5),
    ],
)
def test_costs(heading: str, cell: str, value: float, half: float) -> None:
    cost = one(heading, cell).cost
    assert cost is not None
    assert (cost.value, cost.half) == pytest.approx((value, half))


@pytest.mark.parametrize(
    ("heading", "cell", "macs"),
    [("FLOPs (MMac)", "1", True), ("FLOPs", "1 GMac", True), ("MACs (M)", "1", True), ("FLOPs (M)", "1", False)],
)
def test_whether_a_cost_says_macs(heading: str, cell: str, macs: bool) -> None:
    assert read_table(f"model,{heading}\nbase,{cell}\n").counts_macs is macs


@pytest.mark.parametrize(
    ("heading", "cell", "value", "half"),
    [
        ("accuracy", "0.9382", 0.9382, 5e-5),
        ("top-1", "93.82 %", 0.9382, 5e-5),
        ("Our top-1", "93.82", 0.9382, 5e-5),
        ("Val acc (best)", "93.8%", 0.938, 5e-4),
        ("Test accuracy (%)", "93.82", 0.9382, 5e-5),
        ("Top-1 Acc. (%)", "0.9", 0.009, 5e-4),
    ],
)
def test_accuracies(heading: str, cell: str, value: float, half: float) -> None:
    accuracy = one(heading, cell).accuracy
    assert accuracy is not None
    assert (accuracy.value, accuracy.half) == pytest.approx((value, half))


@pytest.mark.parametrize(("heading", "cell"), [("px", "224"), ("Input size", "224x224"), ("resolution", "224 px")])
def test_input_sides(heading: str, cell: str) -> None:
    assert one(heading, cell).px == 224


def test_other_columns() -> None:
    text = "# somebody's\nArm;n_test;# seeds;sd;depth;w;r;network;Val loss;accuracy;Paper top-1\n"
    table = read_table(text + "base;10k;3;0.2;x1.2;1;2;EfficientNet_B0;0.2;93.8;77.3\n")
    (arm,) = table.arms
    assert (arm.n_test, arm.seeds, arm.network) == (10_000, 3, "efficientnet_b0")
    assert arm.sd == Printed(pytest.approx(0.002), pytest.approx(0.0005))
    assert (arm.depth, arm.width, arm.resolution) == (
        Printed(1.2, pytest.approx(0.012)), Printed(1.0, 0.0), Printed(2.0, pytest.approx(0.02))
    )  # fmt: skip
    assert table.unread == ("Val loss", "Paper top-1")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Base (B0)", "base"), ("Baseline B0", "base"), ("Depth-only", "depth"), ("Scale by depth (B0)", "depth"),
        ("wider", "width"), ("Scale by resolution (B0)", "resolution"), ("Compound scale (B2)", "compound"),
        ("depth+width", "compound"), ("slow_res", "compound"), ("b1", None), ("ours", None),
    ],
)  # fmt: skip
def test_kinds(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_a_released_name_states_its_factors() -> None:
    table = read_table("model,px\nEfficientNet-B1,\nB2,280\n", {"b1": (1.1, 1.0, 240), "b2": (1.2, 1.1, 260)})
    first, second = sorted(table.arms, key=lambda arm: arm.px or 0)
    assert (first.px, first.depth, first.width) == (240, Printed(1.1, 0.0), Printed(1.0, 0.0))
    assert (second.px, second.depth) == (280, Printed(1.2, 0.0))


def test_the_base_may_be_marked() -> None:
    assert read_table("model,base\nours,yes\ntheirs,no\n").base == "ours"
    assert read_table("model,px\nours,224\n").base is None


def test_data_sets_are_known_by_any_spelling() -> None:
    for word in ("CIFAR-10", "cifar10", "Cifar_10"):
        assert dataset_facts(read_table(f"model,dataset\nbase,{word}\n")) == (10, 10_000, 32)
    assert dataset_facts(read_table("model,dataset\nbase,pets\n")) is None


def test_a_heading_may_say_that_the_best_was_printed() -> None:
    assert is_selected("Val acc (best)") and is_selected("max accuracy") and not is_selected("test accuracy")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the table is empty"),
        ("# nothing\n\n", "the table is empty"),
        ("model,px\n", "no rows"),
        ("px,accuracy\n224,90\n", "no column names the arms"),
        ("model,px\n,224\n", "has no name"),
        ("model,px\nbase,224\nbase,256\n", "'base' stands in 2 rows"),
        ("model,px\nbase,224,1\n", "has 3 cells and the headings 2"),
        ("model,params\nbase,4.02\n", "is it thousands, millions or billions?"),
        ("model,FLOPs\nbase,0.39\n", "write it such as 0.39G"),
        ("model,Params (M)\nbase,4.02K\n", "name different units"),
        ("model,FLOPs (M) (G)\nbase,1\n", "names two units"),
        ("model,params\nbase,4.02 apples\n", "'apples' is no unit"),
        ("model,params\nbase,-4.02M\n", "must be positive"),
        ("model,params\nbase,0M\n", "must be positive"),
        ("model,params\nbase,many\n", "which is no number"),
        ("model,params\nbase,1e400M\n", "which no network has"),
        ("model,params\nbase,1.2.3M\n", "which is no number"),
        ('model,params\nbase,"4,02M"\n', "write a decimal point"),
        ("model,accuracy\nbase,0.9\ndepth,91\n", "shares or percent?"),
        ("model,accuracy\nbase,93.8 ± 0.2\n", "put the standard deviation over seeds into a column sd"),
        ("model,accuracy\nbase,101 %\n", "must lie between 0 and 100"),
        ("model,accuracy\nbase,-3\n", "must lie between 0 and 1"),
        ("model,accuracy\nbase,nan\n", "which is no number"),
        ("model,accuracy,top-1\nbase,90,90\n", "both look like accuracy"),
        ("model,px\nbase,224x256\n", "only square pictures"),
        ("model,px\nbase,2\n", "must lie in 8 to 8192"),
        ("model,px\nbase,99999\n", "must lie in 8 to 8192"),
        ("model,seeds\nbase,1.5\n", "whole number"),
        ("model,seeds\nbase,0\n", "whole number"),
        ("model,n_test\nbase,-10\n", "whole number"),
        ("model,depth\nbase,0\n", "must be a positive multiple"),
        ("model,depth\nbase,2 apples\n", "must be a positive multiple"),
        ("model,base\nours,perhaps\n", "neither yes nor no"),
        ("model,base\nours,yes\ntheirs,yes\n", "are all marked as base"),
        ("model,px\nbase,224\nbaseline,224\n", "all sound like the base"),
        ("model,dataset\nbase,cifar10\ndepth,cifar100\n", "audit one of them at a time"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_table(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    try:
        table = read_table(text)
    except ValueError as error:
        assert str(error)
    else:
        assert table.arms


@given(value=st.integers(1, 10**7), digits=st.integers(0, 3), unit=st.sampled_from(["K", "M", "G", "B"]))
def test_a_printed_number_holds_what_it_was_rounded_from(value: int, digits: int, unit: str) -> None:
    scale = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}[unit]
    exact = value / 1e3
    cell = f"{exact:.{digits}f}{unit}"
    if float(cell[:-1]) == 0.0:
        return
    params = one("params", cell).params
    assert params is not None
    assert params.low * (1 - 1e-9) <= exact * scale <= params.high * (1 + 1e-9)

"""The compiled kernels against plain torch in float64: values, gradients, running statistics, memory, determinism."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from src.kernels import native
from src.kernels.native import Gate, Norm

ROOT = Path(__file__).resolve().parents[2]
LAST = torch.channels_last
needed = pytest.mark.skipif(native.load() is None, reason=f"no native kernels here: {native.why_not()}")
pytestmark = needed

MOMENTUM, EPS = 0.1, 1e-3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads that a test sets is its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def drawn(seed: int, channels: int, kernel: int, squeezed: int = 3) -> dict[str, Tensor]:
    """Parameters of a block's middle, float32."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    return {
        "w1": draw(channels).abs() + 0.5,
        "b1": draw(channels),
        "kernel": draw(channels, 1, kernel, kernel) / kernel,
        "w2": draw(channels).abs() + 0.5,
        "b2": draw(channels),
        "reduce_w": draw(squeezed, channels) / channels**0.5,
        "reduce_b": draw(squeezed),
        "expand_w": draw(channels, squeezed) / squeezed**0.5,
        "expand_b": draw(channels),
    }


def statistics(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.full((channels,), 0.25, dtype=dtype), torch.full((channels,), 2.0, dtype=dtype)


def act_of(x: Tensor, act: str) -> Tensor:
    return {"silu": F.silu, "relu": F.relu, "relu6": F.relu6, "none": lambda x: x}[act](x)


def excited(a: Tensor, p: dict[str, Tensor], act: str) -> Tensor:
    squeezed = act_of(F.linear(a.mean((2, 3)), p["reduce_w"], p["reduce_b"]), act)
    return a * torch.sigmoid(F.linear(squeezed, p["expand_w"], p["expand_b"]))[:, :, None, None]


def plain(
    x: Tensor, p: dict[str, Tensor], act: str, stride: int, buffers: list[Tensor], first: bool, gated: bool
) -> Tensor:
    """What the kernels compute, in plain torch."""
    if first:
        x = act_of(F.batch_norm(x, *buffers[:2], p["w1"], p["b1"], True, MOMENTUM, EPS), act)
    kernel = p["kernel"]
    y = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, x.shape[1])
    a = act_of(F.batch_norm(y, *buffers[2:], p["w2"], p["b2"], True, MOMENTUM, EPS), act)
    return excited(a, p, act) if gated else a


def fused(
    x: Tensor, p: dict[str, Tensor], act: str, stride: int, buffers: list[Tensor], first: bool, gated: bool
) -> Tensor:
    norm1 = Norm(p["w1"], p["b1"], buffers[0], buffers[1], MOMENTUM, EPS) if first else None
    norm2 = Norm(p["w2"], p["b2"], buffers[2], buffers[3], MOMENTUM, EPS)
    gate = Gate(p["reduce_w"], p["reduce_b"], p["expand_w"], p["expand_b"]) if gated else None
    return native.mbconv_middle(x, norm1, act, p["kernel"], stride, norm2, gate)


def both(
    run: Callable[[Tensor, dict[str, Tensor]], Tensor],
    exact: Callable[[Tensor, dict[str, Tensor]], Tensor],
    x: Tensor,
    parameters: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Output and all gradients of the fused function and, in float64, of the plain one."""
    results = []
    noise: Tensor | None = None
    for function, dtype in ((exact, torch.float64), (run, None)):
        leaf = (x.double() if dtype else x.clone(memory_format=LAST)).requires_grad_()
        leaves = {name: (p.double() if dtype else p.clone()).requires_grad_() for name, p in parameters.items()}
        z = function(leaf, leaves)
        if noise is None:
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
        z.backward(noise.to(z.dtype).contiguous(memory_format=LAST))
        found = {"z": z.detach(), "x": leaf.grad, **{name: p.grad for name, p in leaves.items()}}
        results.append({name: value for name, value in found.items() if value is not None})
    return results[1], results[0]


def agree(found: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    """Every result differs by less than `tolerance` of its norm; sums of unit terms that cancel count as a tenth."""
    assert found.keys() == exact.keys()
    for name, wanted in exact.items():
        error = (found[name].double() - wanted).norm()
        scale = max(wanted.norm().item(), 0.1 * wanted.numel() ** 0.5)
        assert error / scale < tolerance, (name, float(error / scale))


def compare(
    seed: int,
    shape: tuple[int, int, int, int],
    kernel: int,
    stride: int,
    act: str,
    first: bool,
    gated: bool,
    dtype: torch.dtype,
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).contiguous(memory_format=LAST)
    parameters = drawn(seed, shape[1], kernel)
    native_buffers = [*statistics(shape[1]), *statistics(shape[1])]
    exact_buffers = [*statistics(shape[1], torch.float64), *statistics(shape[1], torch.float64)]
    found, exact = both(
        lambda x, p: fused(x, p, act, stride, native_buffers, first, gated),
        lambda x, p: plain(x, p, act, stride, exact_buffers, first, gated),
        x,
        parameters,
    )
    half = dtype == torch.bfloat16
    agree(found, exact, 2e-2 if half else 1e-5)
    for one, other in zip(native_buffers, exact_buffers, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-2 if half else 1e-5, atol=1e-2 if half else 1e-6)


GRID = list(itertools.product((3, 5), (1, 2), ("silu", "relu", "relu6", "none"), (True, False), (True, False)))


@pytest.mark.parametrize(("kernel", "stride", "act", "first", "gated"), GRID)
def test_middle_of_a_block_agrees(kernel: int, stride: int, act: str, first: bool, gated: bool) -> None:
    rng = random.Random(GRID.index((kernel, stride, act, first, gated)))
    for side in (rng.randint(2, 9), rng.choice((8, 14, 16, 33))):
        shape = (rng.randint(3, 5), rng.choice((1, 7, 16, 24, 40, 96)), side, side)
        compare(rng.randrange(1000), shape, kernel, stride, act, first, gated, torch.float32)


@pytest.mark.parametrize(("kernel", "stride", "act"), list(itertools.product((3, 5), (1, 2), ("silu", "none"))))
def test_middle_of_a_block_agrees_in_bfloat16(kernel: int, stride: int, act: str) -> None:
    for shape in ((4, 24, 9, 9), (3, 96, 14, 14)):
        compare(kernel + stride, shape, kernel, stride, act, True, True, torch.bfloat16)
        compare(kernel + stride, shape, kernel, stride, act, False, False, torch.bfloat16)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    batch=st.integers(2, 5),
    channels=st.integers(1, 35),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from((3, 5)),
    stride=st.sampled_from((1, 2)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_depthwise_agrees(
    seed: int, batch: int, channels: int, height: int, width: int, kernel: int, stride: int, dtype: torch.dtype
) -> None:
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
    found, exact = both(
        lambda x, p: native.depthwise(x, p["kernel"], stride),
        lambda x, p: F.conv2d(x, p["kernel"], None, stride, kernel // 2, 1, channels),
        x.to(dtype).contiguous(memory_format=LAST),
        {"kernel": drawn(seed, channels, kernel)["kernel"]},
    )
    agree(found, exact, 1e-2 if dtype == torch.bfloat16 else 1e-6)


SWITCHES = (False, True)


@pytest.mark.parametrize(("act", "keeps", "adds", "half"), list(itertools.product(native.ACTS, *(SWITCHES,) * 3)))
def test_norm_act_agrees(act: str, keeps: bool, adds: bool, half: bool) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    for shape in ((5, 24, 7, 3), (2, 5, 33, 33), (130, 17, 1, 1)):
        g = torch.Generator().manual_seed(3)
        x = torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=LAST)
        p = {name: value for name, value in drawn(0, shape[1], 3).items() if name in ("w1", "b1")}
        keep = torch.rand(shape[0], generator=g) if keeps else None
        buffers, others = statistics(shape[1]), statistics(shape[1], torch.float64)
        found, exact = both(
            lambda x, p, keep=keep, buffers=buffers: native.norm_act(
                x, Norm(p["w1"], p["b1"], *buffers, MOMENTUM, EPS), act, keep=keep, residual=x if adds else None
            ),
            lambda x, p, keep=keep, buffers=others: (
                act_of(F.batch_norm(x, *buffers, p["w1"], p["b1"], True, MOMENTUM, EPS), act)
                * (keep.double()[:, None, None, None] if keep is not None else 1.0)
                + (x if adds else 0.0)
            ),
            x,
            p,
        )
        agree(found, exact, 1e-2 if half else 2e-6)
        for one, other in zip(buffers, others, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7)


OUTER = ("w2", "b2", "reduce_w", "reduce_b", "expand_w", "expand_b")


@pytest.mark.parametrize("act", ["silu", "relu", "relu6"])
@pytest.mark.parametrize("half", SWITCHES)
def test_norm_act_excite_agrees(act: str, half: bool) -> None:
    def run(x: Tensor, p: dict[str, Tensor]) -> Tensor:
        norm = Norm(p["w2"], p["b2"], *statistics(x.shape[1]), MOMENTUM, EPS)
        return native.norm_act_excite(x, norm, act, Gate(*(p[name] for name in OUTER[2:])))

    def exact(x: Tensor, p: dict[str, Tensor]) -> Tensor:
        y = F.batch_norm(x, None, None, p["w2"], p["b2"], True, MOMENTUM, EPS)
        return excited(act_of(y, act), p, act)

    for shape in ((4, 24, 5, 6), (1, 100, 17, 17), (33, 7, 2, 2)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        x = x.to(torch.bfloat16 if half else torch.float32).contiguous(memory_format=LAST)
        parameters = drawn(1, shape[1], 3)
        found, wanted = both(run, exact, x, {name: parameters[name] for name in OUTER})
        agree(found, wanted, 1e-2 if half else 5e-6)


def test_variance_does_not_cancel_under_a_large_mean() -> None:
    x = (torch.randn(4, 8, 30, 30, dtype=torch.float64) + 3e4).float().contiguous(memory_format=LAST)
    means, variances = statistics(8)
    z = native.norm_act(x, Norm(torch.ones(8), torch.zeros(8), means, variances, 1.0, 0.0))
    exact = x.double().permute(1, 0, 2, 3).reshape(8, -1)
    torch.testing.assert_close(variances.double(), exact.var(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(means.double(), exact.mean(1), rtol=1e-7, atol=0)
    wanted = (x.double() - exact.mean(1)[:, None, None]) / exact.var(1, unbiased=False).sqrt()[:, None, None]
    torch.testing.assert_close(z.double(), wanted, rtol=1e-5, atol=1e-5)


def results(threads: int, dtype: torch.dtype, batch: int = 5) -> list[Tensor]:
    torch.set_num_threads(threads)
    x = torch.randn(batch, 40, 13, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaves = {name: p.requires_grad_() for name, p in drawn(0, 40, 5).items()}
    x = x.contiguous(memory_format=LAST).requires_grad_()
    buffers = [*statistics(40), *statistics(40)]
    z = fused(x, leaves, "silu", 2, buffers, True, True)
    norm = Norm(leaves["w1"], leaves["b1"], *buffers[:2], MOMENTUM, EPS)
    z = native.norm_act(z, norm, "relu", residual=z)
    z.float().sin().sum().backward()
    return [z, *buffers, *(leaf.grad for leaf in (x, *leaves.values()) if leaf.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_or_run(dtype: torch.dtype) -> None:
    first = results(1, dtype)
    assert len(first) == 5 + 10
    for threads in (1, 2, 3):
        for one, other in zip(first, results(threads, dtype), strict=True):
            assert torch.equal(one, other)


def middle(x: Tensor, leaves: dict[str, Tensor], buffers: list[Tensor]) -> Tensor:
    return fused(x, leaves, "silu", 1, buffers, True, True)


def test_works_under_checkpointing_with_copied_buffers() -> None:
    x = torch.randn(4, 24, 8, 8).contiguous(memory_format=LAST)
    gradients = []
    for again in (False, True):
        leaves = {name: p.requires_grad_() for name, p in drawn(0, 24, 3).items()}
        leaf, buffers = x.clone(memory_format=LAST).requires_grad_(), [*statistics(24), *statistics(24)]

        def run(leaf: Tensor, leaves: dict[str, Tensor] = leaves, buffers: list[Tensor] = buffers) -> Tensor:
            return middle(leaf, leaves, [b.clone() for b in buffers])

        z = checkpoint(run, leaf, use_reentrant=False) if again else run(leaf)
        z.sin().sum().backward()
        gradients.append([leaf.grad, *(p.grad for p in leaves.values())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_keeps_two_maps_and_vectors() -> None:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(4, 32, 16, 16).contiguous(memory_format=LAST).requires_grad_()
    leaves = {name: p.requires_grad_() for name, p in drawn(0, 32, 3).items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        middle(x, leaves, [*statistics(32), *statistics(32)])
    one = x.numel() * 4
    assert sum(size == one for size in kept.values()) == 2
    assert sum(size for size in kept.values() if size != one) < 0.1 * one
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        native.norm_act(x, Norm(leaves["w1"], leaves["b1"], *statistics(32), MOMENTUM, EPS), "silu")
    assert sum(size == one for size in kept.values()) == 1


@pytest.mark.parametrize("wanted", ["kernel", "w1", "reduce_w", "x"])
def test_works_when_only_some_inputs_need_gradients(wanted: str) -> None:
    x, leaves = torch.randn(3, 24, 8, 8).contiguous(memory_format=LAST), drawn(0, 24, 3)
    tensors = {**leaves, "x": x}
    tensors[wanted].requires_grad_()
    z = middle(x, leaves, [*statistics(24), *statistics(24)])
    z.square().sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {wanted}
    some = tensors[wanted].grad
    for tensor in tensors.values():
        tensor.requires_grad_()
    tensors[wanted].grad = None
    middle(x, leaves, [*statistics(24), *statistics(24)]).square().sum().backward()
    assert some is not None and torch.equal(some, tensors[wanted].grad)  # type: ignore[arg-type]


def test_a_broken_number_stays_visible() -> None:
    for act in native.ACTS:
        x = torch.randn(2, 16, 4, 4).contiguous(memory_format=LAST)
        x[0, 3, 1, 1] = float("nan")
        z = native.norm_act(x, Norm(torch.ones(16), torch.zeros(16), *statistics(16), MOMENTUM, EPS), act)
        assert z[:, 3].isnan().all() and not z[:, :3].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 8, 4, 4)}, "channels_last"),
        ({"x": torch.randn(2, 8, 4, 4).double().contiguous(memory_format=LAST)}, "float64"),
        ({"x": torch.randn(1, 8, 1, 1)}, "more than one value"),
        ({"act": "gelu"}, "gelu"),
        ({"stride": 3}, "stride 3"),
        ({"kernel": torch.randn(8, 1, 7, 7)}, "k 3 or 5"),
        ({"w1": torch.randn(9)}, "batch norm"),
        ({"reduce_w": torch.randn(3, 9)}, "excitation"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {
        "x": torch.randn(2, 8, 4, 4).contiguous(memory_format=LAST),
        "act": "silu",
        "stride": 1,
    }
    values |= drawn(0, 8, 3) | change
    parameters = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    x, act, stride = values["x"], values["act"], values["stride"]
    with pytest.raises(ValueError, match=message):
        fused(x, parameters, act, stride, [*statistics(8), *statistics(8)], True, True)  # type: ignore[arg-type]


PROGRAM = """
import torch
from src.kernels import native
print(native.load() is not None, native.why_not() or "-", sep="|")
try:
    native.depthwise(torch.zeros(2, 8, 4, 4).contiguous(memory_format=torch.channels_last), torch.zeros(8, 1, 3, 3), 1)
except ValueError as error:
    print(error)
"""


def report(**environment: str) -> list[str]:
    """What another process says of the library."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


def test_without_a_compiler_there_is_a_reason_and_no_exception(tmp_path: Path) -> None:
    lines = report(PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert lines[0].startswith("False|no C compiler") and "use plain torch" in lines[1]


def test_the_switch_turns_it_off() -> None:
    assert report(SCALESTUDY_NATIVE="0")[0] == "False|SCALESTUDY_NATIVE=0"


def test_torch_and_the_library_share_one_openmp_runtime() -> None:
    program = (
        "import torch; from src.kernels import native; assert native.load()\n"
        "maps = [line.split()[-1] for line in open('/proc/self/maps')]\n"
        "print(len({path for path in maps if path.rpartition('/')[2].startswith(('libgomp', 'libiomp', 'libomp'))}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_library_that_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.LIBRARY, "_opened", None)
    monkeypatch.setattr(native.LIBRARY, "_why", None)
    assert native.LIBRARY.load(lambda: "result 3: off by 1e-2") is None
    assert native.why_not() == "it disagrees with torch: result 3: off by 1e-2"


def test_the_check_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native._disagreement() == ""
    right = native.call

    def wrong(name: str, *arguments: object) -> None:
        right(name, *arguments)
        if name == "norm_pool":
            arguments[1].mul_(1.01)  # type: ignore[attr-defined]

    monkeypatch.setattr(native, "call", wrong)
    assert native._disagreement().startswith("result 0")


@pytest.mark.slow
def test_two_processes_compile_into_an_empty_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=200)[0].splitlines() for process in both] == [["True|-"]] * 2
    assert len(list(tmp_path.rglob("*.so"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_narrower_processors_compute_the_same(level: str, tmp_path: Path) -> None:
    if level == "x86-64-v4" and "avx512bw" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX-512")
    program = (
        "from src.kernels import library, native\n"
        f"library.machine_flags = lambda: ('-march={level}',)\n"
        "print(native.load() is not None, native.why_not() or '-', sep='|')"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True|-"

"""Compiles a source in C for this machine at first use and loads it; where that cannot be, says why in one line.

Linux with a C compiler only. A library uses the OpenMP runtime that torch has loaded, never a second one: it is linked
without any, and torch's is made visible to it. So all share one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from src.cache import cache_folder

SWITCH = "SCALESTUDY_NATIVE"  # environment: 0 for plain torch
# Beside -O3 nothing that changes a result; errno and traps are not looked at.
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
COMPILE_SECONDS = 120
NO_MEMORY = 1  # what a function returns that could not have its scratch; 0 is success


class UnavailableError(Exception):
    """Why there is no library; one line."""


def machine_flags() -> tuple[str, ...]:
    """Compiler flags for this processor."""
    if platform.machine() in ("x86_64", "AMD64"):
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def library_key(source: Path, compiler: str, flags: tuple[str, ...]) -> str:
    """Hash of all that the machine code depends on: source, flags, compiler and processor."""
    parts = [source.read_text(), *flags, *_toolchain(compiler)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@functools.cache
def _toolchain(compiler: str) -> tuple[str, ...]:
    """What a compiler and the processor say of themselves."""
    version = _run([compiler, "--version"])
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return version, *sorted(processor)


def _run(command: list[str]) -> str:
    """Output of a command; UnavailableError with its last complaint if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
        raise UnavailableError(f"{command[0]} fails: {complaint.strip()}")
    return done.stdout


def compiled(source: Path, flags: tuple[str, ...]) -> Path:
    """A source's library for this machine, compiled now if it is not in the cache; for several processes at a time.

    Raises:
        UnavailableError: no compiler, no writable cache, or the compiler fails.
    """
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UnavailableError("no C compiler (cc, gcc or clang) on the path")
    flags = (*FLAGS, *flags, *machine_flags())
    try:
        folder = cache_folder() / "kernels"
        path = folder / f"{library_key(source, compiler, flags)}.so"
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=COMPILE_SECONDS):
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    thing, library = f"{work}/{source.stem}.o", f"{work}/{source.stem}.so"
                    _run([compiler, *flags, "-c", str(source), "-o", thing])
                    _run([compiler, "-shared", thing, "-o", library, "-lm"])
                    os.replace(library, path)
    except (OSError, Timeout) as error:
        raise UnavailableError(f"the library cannot be kept in {cache_folder()}: {error}") from error
    return path


def torch_openmp() -> str:
    """Path of the OpenMP runtime that torch has loaded.

    Raises:
        UnavailableError: torch has none, so its threads cannot be shared.
    """
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    home = str(Path(torch.__file__).parent)
    runtimes = [path for path in mapped if Path(path).name.startswith(("libgomp", "libiomp", "libomp"))]
    ours = sorted(runtimes, key=lambda path: (not path.startswith(home), path))
    if not ours:
        raise UnavailableError("torch has loaded no OpenMP runtime to share")
    return ours[0]


class Library:
    """One source of this folder, and what this process knows of its library.

    Args:
        source: its name.
        flags: of the compiler, beside `FLAGS` and those for the processor.
        signatures: types of the arguments of its functions, each of which returns 0 or what went wrong. The number of
            threads comes last.
    """

    def __init__(self, source: str, flags: tuple[str, ...], signatures: dict[str, tuple[type, ...]]) -> None:
        self.source, self.flags, self.signatures = Path(__file__).with_name(source), flags, signatures
        self._opened: ctypes.CDLL | None = None
        self._why: str | None = None  # None until it has been asked for

    def load(self, check: Callable[[], str]) -> ctypes.CDLL | None:
        """The library, compiled and checked once a process; None where `why_not` says why. Never raises.

        check: runs the kernels against torch; returns what disagrees, or nothing.
        """
        if self._why is None:
            self._why = ""
            try:
                if os.environ.get(SWITCH, "1") == "0":
                    raise UnavailableError(f"{SWITCH}=0")
                if sys.platform != "linux":
                    raise UnavailableError(f"for Linux only, this is {sys.platform}")
                self._opened = self._open(compiled(self.source, self.flags))
                fault = check()
                if fault:
                    raise UnavailableError(f"it disagrees with torch: {fault}")
            except Exception as error:  # whatever it is, plain torch can do the same
                self._opened = None
                self._why = str(error) if isinstance(error, UnavailableError) else f"{type(error).__name__}: {error}"
                self._why = self._why.splitlines()[0]
        return self._opened

    def why_not(self) -> str:
        """Why `load` gave nothing; empty when it gave a library or was not called yet."""
        return self._why or ""

    def call(self, name: str, *arguments: object) -> None:
        """Runs a function with torch's number of threads. Tensors go as pointers, None as null.

        Raises:
            ValueError: there is no library.
            MemoryError: the function found no memory for its scratch.
            IndexError: an argument points outside of another.
        """
        if self._opened is None:
            raise ValueError(f"no native kernels ({self._why or 'load() was not called'}); use plain torch")
        values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
        bad = getattr(self._opened, name)(*values, torch.get_num_threads())
        if bad == NO_MEMORY:
            raise MemoryError(f"no memory for the scratch of {name}")
        if bad:
            raise IndexError(f"an argument of {name} points outside of another")

    def _open(self, path: Path) -> ctypes.CDLL:
        """The library with the argument types of its functions."""
        try:
            ctypes.CDLL(torch_openmp(), mode=ctypes.RTLD_GLOBAL)
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise UnavailableError(f"the library cannot be loaded: {error}") from error
        for name, types in self.signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, ctypes.c_int
        return library

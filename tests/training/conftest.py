"""Shared by the tests of training: one CPU thread, and tiny pictures on disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from training_tiny import write_pictures

from src.data.options import DataOptions


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread: fast for tensors of this size, and the same sums in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> DataOptions:
    """Three classes that differ by colour alone: 48 pictures to learn, 24 to choose by, 18 sealed."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))

"""Deterministic tests: hypothesis replays its examples, statistical tests fix seeds and state their error rates."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import unmask
from unmask.oracles import TableDenoiser

# Tensors here are tiny, and two threads beside another busy process wait for each other at every operation.
torch.set_num_threads(int(os.environ.get("UNMASK_TEST_THREADS", "1")))

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the real hub

NUMERICAL = {
    "audit",
    "bidirectional",
    "blind",
    "block_causal",
    "block_families",
    "block_generation",
    "cache",
    "categorical",
    "clock",
    "coconet",
    "dependence_bound",
    "dit",
    "dplm",
    "drawn",
    "expert_generation",
    "experts",
    "engine",
    "golden",
    "history",
    "independence",
    "judge",
    "kernels",
    "language",
    "law",
    "likelihood",
    "loop_law",
    "masked_lm",
    "noisy",
    "numerics",
    "oracles",
    "profile",
    "rules",
    "sampler",
    "schedule",
    "shapes",
    "speculative",
    "stream",
    "streams",
    "sudoku_net",
    "transformer",
}
"""The modules whose outcome could depend on how a processor rounds; `make test-portable` runs them as others do."""


def pytest_configure() -> None:
    """Refuses a name of a module that has moved."""
    gone = sorted(name for name in NUMERICAL if not (Path(__file__).parent / f"test_{name}.py").exists())
    if gone:
        raise pytest.UsageError(f"NUMERICAL in tests/conftest.py names modules that are not there: {', '.join(gone)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the numerical tests."""
    for item in items:
        if item.path.stem.removeprefix("test_") in NUMERICAL:
            item.add_marker(pytest.mark.numerical)


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedded language model, for tests that have no model of their own."""
    return unmask.load("chat")


@pytest.fixture(scope="module")
def models(model: Any) -> list[Any]:
    """What a server of the tests serves."""
    from unmask.serving.served import Served

    return [Served("chat", model, "chat"), Served("sudoku", unmask.load("sudoku"), "sudoku")]


settings.register_profile(
    "unmask", derandomize=True, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck)
)
settings.load_profile("unmask")


@st.composite
def tables(draw: Callable[..., int], symbols: int = 3, length: int = 4, zeros: bool = True) -> TableDenoiser:
    """Random joint tables: peaked or flat, some with impossible outcomes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharpness = draw(st.sampled_from([0.3, 1.0, 3.0]))
    weights = torch.randn((symbols,) * length, generator=generator, dtype=torch.float64).mul(sharpness).exp()
    if zeros and draw(st.booleans()):
        weights *= torch.rand(weights.shape, generator=generator) < 0.5
        weights.reshape(-1)[0] += 0.01  # never all zero
    return TableDenoiser(weights / weights.sum())

"""Every named rule gives the tokens, evaluations and bounds it gave before: see `golden.py`."""

from __future__ import annotations

import pytest
import torch
from golden import cases, read


@pytest.fixture(scope="module")
def found() -> dict:
    return dict(cases())


def test_every_saved_case_is_run_again(found):
    assert set(read()) <= set(found)


@pytest.mark.parametrize("name", read())
def test_nothing_has_changed(found, name):
    then, now = read()[name], found[name]
    assert set(then) == set(now)
    for what in then:
        if what != "bounds":
            assert now[what] == then[what], what
    for one, other in zip(now.get("bounds", []), then.get("bounds", []), strict=True):
        # Sums of at most a hundred entropies of a few nats, in float64 or, from float32 logits, in float32.
        assert torch.allclose(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=1e-9)

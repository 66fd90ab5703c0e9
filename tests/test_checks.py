from __future__ import annotations

import pytest
import torch

from unmask.checks import whole


def test_a_whole_number_in_range_comes_back():
    assert [whole("k", value) for value in (1, 2**60)] == [1, 2**60]
    assert (whole("k", 0, 0), whole("k", 5, 2, 5)) == (0, 5)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", None, torch.tensor(2)], ids=repr)
def test_everything_else_is_refused_with_its_name(value):
    with pytest.raises(ValueError, match=r"^k must be a whole number >= 1, got "):
        whole("k", value)


@pytest.mark.parametrize("value", [1, 6])
def test_a_range_is_named(value):
    with pytest.raises(ValueError, match=rf"^k must be a whole number from 2 to 5, got {value}$"):
        whole("k", value, 2, 5)

from __future__ import annotations

import math

import pytest
import torch

from unmask.draws.categorical import _invert, draw
from unmask.draws.streams import Purpose, as_streams, uniforms
from unmask.numerics.coupling import inversion_differs, race_differs, total_variation


@pytest.mark.parametrize("apart", [0.0, 0.1, 1.0, 5.0])
def test_the_closed_forms_are_what_draws_do(apart):
    """20,000 pairs of draws with common noise: the shares that differ, within 5 standard errors (6e-7 each)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 300, generator=generator, dtype=torch.float64)
    other = z + apart * torch.randn(1, 300, generator=generator, dtype=torch.float64)
    z[0, 5], other[0, 6] = -math.inf, -math.inf
    p, q = z.softmax(-1), other.softmax(-1)
    u = uniforms(as_streams([0]), torch.arange(20_000), Purpose.TOKEN)
    one, two = z.expand(len(u), -1), other.expand(len(u), -1)
    ones = torch.ones(len(u)).double()
    inverted = (_invert(one, u, ones, None, None) != _invert(two, u, ones, None, None)).double().mean()
    raced = (draw(one, u) != draw(two, u)).double().mean()
    for share, seen in ((inversion_differs(p, q), inverted), (race_differs(p, q), raced)):
        assert abs(float(share) - float(seen)) <= 5 * math.sqrt(float(share.clamp(min=0)) / len(u)) + 1e-12
    least = float(total_variation(p, q))
    assert least - 1e-12 <= float(race_differs(p, q)) <= 2 * least / (1 + least) + 1e-12
    assert least - 1e-12 <= float(inversion_differs(p, q))

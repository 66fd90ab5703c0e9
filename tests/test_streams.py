from __future__ import annotations

import pytest
import torch

from unmask.draws.streams import Purpose, as_streams, derive, philox, row_streams, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    c0, c1, c2, c3, k0, k1 = (torch.tensor([word]) for word in (*counter, *key))
    words = philox((c0, c1, c2, c3), (k0, k1))
    assert tuple(int(word) for word in words) == expected
    arrays = philox((c0.numpy(), c1.numpy(), c2.numpy(), c3.numpy()), (k0.numpy(), k1.numpy()))
    assert tuple(int(word[0]) for word in arrays) == expected


def test_a_uniform_depends_on_stream_position_purpose_and_visit_and_on_nothing_else():
    stream, position = as_streams([7, 8]).unsqueeze(-1), torch.arange(5)
    u = uniforms(stream, position, Purpose.TOKEN)
    assert torch.equal(u[1, 3:], uniforms(as_streams([8]), position[3:], Purpose.TOKEN))
    assert len({*u.flatten().tolist(), *uniforms(stream, position, Purpose.ORDER).flatten().tolist()}) == 20
    assert not torch.equal(u, uniforms(stream, position, Purpose.TOKEN, visits=1))


def test_uniforms_are_uniform():
    # Kolmogorov's statistic over 10^6 draws: a correct generator exceeds 2.8 once in 10^6 seeds.
    u = uniforms(as_streams([3]), torch.arange(1_000_000), Purpose.TOKEN).sort().values
    assert float(u[0]) >= 0
    assert float(u[-1]) < 1
    grid = torch.arange(1_000_000, dtype=torch.float64) / 1e6
    assert float((u - grid).abs().max()) * 1e3 < 2.8


def test_derive_separates_its_labels():
    names = [
        derive(0),
        derive(0, 1),
        derive(1, 0),
        derive(0, 1, 23),
        derive(0, 12, 3),
        derive(0, [1, 23]),
        derive(0, "1"),
    ]
    assert len(set(names)) == len(names)
    assert all(0 <= name < 2**64 for name in names)
    assert derive(5, 1) == 0x0 + derive(5, 1)
    assert derive(0, (1, 2)) == derive(0, [1, 2])


def test_the_streams_of_rows_are_those_derived_one_by_one():
    for seed in (0, -3, 1 << 70):
        assert torch.equal(row_streams(seed, 1001), as_streams(derive(seed, row) for row in range(1001)))


def test_a_stream_that_is_no_64_bit_integer_is_refused():
    assert as_streams([2**64 - 1, -1]).tolist() == [-1, -1]
    for bad in (2**64, -(2**63) - 1, 0.5, True, "1"):
        with pytest.raises(ValueError, match="64-bit integer"):
            as_streams([bad])  # pyright: ignore[reportArgumentType]

"""Random numbers that belong to a sequence: counter-based, so no sample depends on its batch mates.

Every uniform is a pure function of (stream, position, purpose, visit). The *stream* is a 64-bit integer owned by one
sequence; *position* counts inside the sequence, not counting padding; *purpose* separates the uniform that draws a
token from the one that orders positions; *visit* counts how often the position has been drawn before (0 unless a rule
masks again). Rows, batch sizes and step counters never enter.

References:
    Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3": Philox4x32-10.
"""

from __future__ import annotations

import hashlib
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_Words = TypeVar("_Words", Tensor, np.ndarray)

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _HALF = np.uint64(_WORD), np.uint64(32)
_FACTORS = np.array(_MULTIPLIERS, np.uint64).reshape(2, 1)
_WEYLS = np.array(_WEYL, np.uint64).reshape(1, 2, 1) * np.arange(10, dtype=np.uint64).reshape(10, 1, 1)
_CHUNK = 1 << 13
"""Numbers made at once: the 60 small operations of a block function stay in cache."""


class Purpose(IntEnum):
    """What a uniform is for; different purposes are independent."""

    TOKEN = 0
    """Which token a position takes."""
    ORDER = 1
    """When a position is unmasked: its random order, or its first-hitting time."""
    COUNT = 2
    """How many tokens a likelihood estimate masks; the position is the number of the mask."""
    MASK = 3
    """Which tokens a likelihood estimate masks; the visit is the number of the permutation."""
    AUDIT = 4
    """Which steps an audit tests, and how; the visit is three times the number of the step, and up to two more."""
    AGAIN = 5
    """Which token a position takes after it was masked again; the visit counts how often it was. Not `TOKEN`, of which
    evaluations that draw drafts have a uniform each."""
    COIN = 6
    """Whether a rule writes a position, or masks it again; the visit is the rule's own count of its turns."""


def derive(seed: int, *parts: int | bytes | str | Iterable[int]) -> int:
    """Derives the 64-bit stream named by a seed and any further labels.

    `sample(seed=s)` gives row `r` the stream `derive(s, r)`. The commands use `derive(seed, tokens, copy)`, so that an
    answer depends on what was asked, not on where in a file it stood.

    Args:
        seed: Any integer.
        *parts: Integers, strings, bytes or iterables of integers; their boundaries matter, so `(1, 23)` and `(12, 3)`
            name different streams.

    Returns:
        An integer in `[0, 2**64)`: the first eight bytes of BLAKE2b over the labels.

    Raises:
        ValueError: If `seed` is not an integer.
    """
    digest = _seeded(seed)
    for part in parts:
        digest.update(_label(part))
    return int.from_bytes(digest.digest(), "little")


def row_streams(seed: int, rows: int, device: torch.device | str | None = None) -> Int[Tensor, " rows"]:
    """Returns `derive(seed, row)` for so many rows, packed as by `as_streams`, in a fraction of the time.

    Raises:
        ValueError: If `seed` is not an integer.
    """
    seeded, found = _seeded(seed), bytearray()
    for row in range(rows):
        digest = seeded.copy()
        digest.update(_label(row))
        found += digest.digest()
    return torch.from_numpy(np.frombuffer(found, dtype="<i8").astype(np.int64)).to(device)


def _seeded(seed: int) -> hashlib.blake2b:
    """The hash of a seed, to which labels are added."""
    try:
        seed = operator.index(seed)
    except TypeError:
        raise ValueError(f"seed is an integer, got {seed!r:.80}") from None
    return hashlib.blake2b(_label(seed), digest_size=8, person=b"unmask.stream")


def _label(part: int | bytes | str | Iterable[int]) -> bytes:
    """A label as it is hashed, behind its length."""
    if isinstance(part, int):
        blob = b"i%d" % part
    elif isinstance(part, str):
        blob = b"s" + part.encode()
    elif isinstance(part, bytes):
        blob = b"b" + part
    else:
        blob = b"l" + ",".join(str(int(value)) for value in part).encode()
    return len(blob).to_bytes(8, "little") + blob


def prompt_streams(prompts: Iterable[Sequence[int]], seed: int) -> list[int]:
    """Returns `derive(seed, tokens, copy)` for every prompt, `copy` the number of equal prompts before it.

    Prompts are told apart by the stream of their first copy, so that those of an iterator need not be kept.
    """
    copies: Counter[int] = Counter()
    streams = []
    for prompt in prompts:
        key = tuple(prompt)
        first = derive(seed, key, 0)
        copy = copies[first]
        copies[first] += 1
        streams.append(derive(seed, key, copy) if copy else first)
    return streams


def as_streams(streams: Iterable[int], device: torch.device | str | None = None) -> Int[Tensor, " batch"]:
    """Packs 64-bit integers into an int64 tensor, two's complement.

    Raises:
        ValueError: If a stream is not an integer in `[-2**63, 2**64)`.
    """
    packed = []
    for stream in streams:
        try:
            number = operator.index(stream)
        except TypeError:
            number = None
        if number is None or isinstance(stream, bool) or not -(2**63) <= number < 2**64:
            raise ValueError(f"a stream is a 64-bit integer, got {stream!r}; derive(seed, row) makes one")
        stream = number
        packed.append(stream - 2**64 if stream >= 2**63 else stream)
    return torch.tensor(packed, dtype=torch.int64, device=device)


def philox(counter: tuple[_Words, _Words, _Words, _Words], key: tuple[_Words, _Words]) -> tuple[_Words, ...]:
    """Evaluates the Philox4x32-10 block function on 32-bit words held in int64 tensors or arrays of one shape."""
    if isinstance(key[0], np.ndarray):  # both products at once: NumPy is quick to start, but not for nothing
        even, odd = np.array(counter).view(np.uint64).reshape(2, 2, -1).swapaxes(0, 1)
        keys = (np.array(key).view(np.uint64).reshape(1, 2, -1) + _WEYLS) & _LOW
        for k in keys:
            product = (even * _FACTORS)[::-1]
            even, odd = (product >> _HALF) ^ odd ^ k, product & _LOW
        return tuple(word.view(np.int64).reshape(key[0].shape) for word in (even[0], odd[0], even[1], odd[1]))
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A 32x32-bit product fills 64 bits; int64 wraps, and the arithmetic shift is masked back to the high word.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (p1 >> 32 & _WORD) ^ c1 ^ k0, (p0 >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def uniforms(
    streams: Int[Tensor, "*#shape"],
    positions: Int[Tensor, "*#shape"],
    purpose: Purpose | Int[Tensor, "*#shape"],
    visits: Int[Tensor, "*#shape"] | int = 0,
) -> Float[Tensor, "..."]:
    """Returns float64 uniforms in `[0, 1)`, multiples of 2⁻⁵³, one per (stream, position, purpose, visit).

    Args:
        streams: 64-bit streams as int64; broadcast against `positions`.
        positions: Positions inside the sequence, `0 <= position < 2**32`.
        purpose: What the numbers are for; a tensor of several makes them in one go.
        visits: How often each position was drawn before.
    """
    counts = torch.as_tensor(visits, device=positions.device)
    kinds = purpose if isinstance(purpose, Tensor) else torch.tensor(int(purpose), device=positions.device)
    words = torch.broadcast_tensors(streams, positions, counts, kinds)
    if 0 < words[0].numel() <= _CHUNK:
        return _uniforms(*words)
    parts = (tensor.reshape(-1).split(_CHUNK) for tensor in words)
    uniform = [_uniforms(*part) for part in zip(*parts, strict=True)]
    return torch.cat(uniform).reshape(words[0].shape) if uniform else torch.empty_like(words[0], dtype=torch.float64)


def _uniforms(streams: Tensor, positions: Tensor, visits: Tensor, purpose: Tensor) -> Tensor:
    words = (streams, positions, visits, purpose)
    if positions.is_cpu:  # NumPy starts an operation in a third of the time that PyTorch takes
        return torch.from_numpy(_bits(*(word.numpy() for word in words)) * 2.0**-53)
    return _bits(*words).double() * 2.0**-53


def _bits(streams: _Words, positions: _Words, visits: _Words, purpose: _Words) -> _Words:
    counter = (positions & _WORD, visits & _WORD, purpose, positions & 0)
    w0, w1, _, _ = philox(counter, (streams & _WORD, streams >> 32 & _WORD))
    return (w0 << 21) | (w1 >> 11)  # 32 + 21 = 53 random bits

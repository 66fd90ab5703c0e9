"""The noise of a race: a standard exponential clock for every token of a position, by a counter-based hash.

A token is drawn as `argmin_v E_v / p_v`, the first clock to ring when token `v` rings at rate `p_v`. As `E_v` belongs
to the token, two evaluations whose probabilities differ by a total variation of `d` give different tokens with
probability at most `2 d / (1 + d)`, however large the vocabulary: there is no sum whose rounding moves all tokens.

Clocks come in groups of 64 tokens. The first to ring in a group is a clock of 64 times the rate, and it is any of them
with equal probability; from then on the others wait for standard exponential times again. So one number per group tells
whether a group with a given largest probability can win at all, and only then are the clocks of its tokens made. All
clocks are independent and standard exponential, and they depend on the position's own uniform and the token alone.

References:
    Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators": SplitMix64.
    Maddison, Tarlow, Minka (2014), "A* sampling" (arXiv:1411.0030): bounds on the maximum of a group of Gumbels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

GROUP = 64
"""Tokens whose clocks have their first one in common."""
GOLDEN = 0x9E3779B97F4A7C15
"""What the counter of SplitMix64 advances by: 2⁶⁴ over the golden ratio."""
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The multipliers of its output."""
INSIDE = 0xD1342543DE82EF95
"""Tells the key of the tokens of a group from that of the groups."""
LEAST = 2.0**-123 / GROUP
"""The smallest clock."""


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift(word: Tensor, bits: int) -> Tensor:
    """The logical shift to the right of 64 bits held as a signed integer."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _mix(word: Tensor) -> Tensor:
    """Scrambles 64 bits, one to one."""
    word = (word ^ _shift(word, 30)) * _signed(FIRST)
    word = (word ^ _shift(word, 27)) * _signed(SECOND)
    return word ^ _shift(word, 31)


def keys(uniform: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The 64-bit key of each position's clocks, from its uniform: a multiple of 2⁻⁵³."""
    return _mix((uniform.double() * 2.0**53).long() + _signed(GOLDEN))


def _words(key: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The two words of each index under each key."""
    counter = key + (2 * index + 1) * _signed(GOLDEN)
    return _mix(counter), _mix(counter + _signed(GOLDEN))


def _exponential(word: Tensor, more: Tensor) -> Tensor:
    """Standard exponentials in float64, from 2⁶⁴ equal steps; the first of 2³² of them in 2⁵⁸ steps more.

    So they reach down to 1e-37, with a relative resolution of 2⁻³² or better everywhere: no class is cut off.
    """
    high, low = _shift(word, 32).double(), (word & 0xFFFFFFFF).double()
    u = (high * 2.0**32 + low + 0.5) * 2.0**-64
    tail = low * 2.0**-64 + (_shift(more, 6).double() + 0.5) * 2.0**-122
    u = torch.where(high == 0, tail, u).clamp(max=1 - 2.0**-53)
    return -torch.log1p(-u)


def first_clocks(
    key: Int[Tensor, " rows"], groups: int
) -> tuple[Float[Tensor, "rows groups"], Int[Tensor, "rows groups"]]:
    """When the first clock of each group of 64 tokens rings, and which of them it is."""
    word, more = _words(key.unsqueeze(-1), torch.arange(groups, device=key.device))
    return _exponential(word, more) / GROUP, more & (GROUP - 1)


def clocks(uniform: Float[Tensor, " rows"], vocab: int) -> Float[Tensor, "rows vocab"]:
    """The clocks of all tokens at positions with these uniforms: what a race needs only a few of."""
    key = keys(uniform)
    every = torch.arange(-(-vocab // GROUP), device=key.device)
    row, group = torch.meshgrid(torch.arange(len(key), device=key.device), every, indexing="ij")
    first, place = first_clocks(key, len(every))
    return _clocks_of(key[row], group, first, place).reshape(len(key), -1)[:, :vocab]


def _clocks_of(key: Tensor, group: Tensor, first: Tensor, place: Tensor) -> Tensor:
    """The clocks of the 64 tokens of some groups, given the first of each."""
    number = torch.arange(GROUP, device=key.device)
    token = group.unsqueeze(-1) * GROUP + number
    later = _exponential(*_words(_mix(key ^ _signed(INSIDE)).unsqueeze(-1), token))
    return first.unsqueeze(-1) + torch.where(number == place.unsqueeze(-1), 0.0, later)


def rates(temperature: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """What logits are multiplied by at some temperatures: no more than keeps products of float32 numbers finite."""
    return (1 / temperature).clamp(max=1e250)


def race(
    logits: Float[Tensor, "rows vocab"], uniform: Float[Tensor, " rows"], temperature: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """Returns `argmax_v (logit_v / temperature - log E_v)` in float64, the lowest id among ties; temperatures above 0.

    A group of tokens can have the maximum only if its largest logit, with the first of its clocks, reaches what the
    token of the first clock has in another group. Only the clocks of such groups are made.
    """
    vocab, key = logits.shape[1], keys(uniform)
    z = pad(logits.double() * rates(temperature).unsqueeze(-1), (0, -vocab % GROUP), value=-math.inf)
    z = z.view(len(z), z.shape[1] // GROUP, GROUP)
    first, place = first_clocks(key, z.shape[1])
    gain = -first.log()
    best = (z.gather(-1, place.unsqueeze(-1)).squeeze(-1) + gain).amax(-1, keepdim=True)
    bound = z.amax(-1) + gain
    row, group = ((bound >= best) & (bound > -math.inf)).nonzero(as_tuple=True)
    score = z[row, group] - _clocks_of(key[row], group, first[row, group], place[row, group]).log()
    highest, inside = score.max(-1)
    winner = highest.new_full((len(z),), -math.inf).scatter_reduce(0, row, highest, "amax")
    token = torch.where(highest == winner[row], group * GROUP + inside, vocab)
    return token.new_full((len(z),), vocab).scatter_reduce(0, row, token, "amin").remainder(vocab)

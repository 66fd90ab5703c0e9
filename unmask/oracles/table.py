"""Oracles with an enumerated support: any joint distribution, and the 288 Sudoku grids of size 4×4."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Query
from .oracle import LIMIT, Oracle, distinct, with_mask_column

_CHUNK = 1 << 23
"""The largest number of elements of the (positions, symbols, points) array that are processed at once."""


class SupportDenoiser(Oracle):
    """The exact conditionals of a distribution given as a list of sequences and their weights.

    Args:
        points: Sequences of positive probability, `[points, length]`, symbols `0..symbols-1`.
        weights: Their weights, up to a factor.
        symbols: Size of the alphabet.

    Raises:
        ValueError: If a weight is negative or not finite, or all weights are zero.
    """

    def __init__(self, points: Int[Tensor, "points length"], weights: Float[Tensor, " points"], symbols: int) -> None:
        super().__init__(symbols)
        weights = weights.double()
        if not bool((weights.isfinite() & (weights >= 0)).all()) or not bool(weights.sum() > 0):
            raise ValueError("weights must be finite and >= 0, with a positive sum")
        keep = weights > 0
        # The weights are not normalised, so that sums of equal weights are exact, and equally certain positions have
        # exactly equal probabilities, whatever the order of summation.
        self.points, self.weights = points[keep].contiguous(), weights[keep]
        self.total = weights[keep].sum()
        self.length = points.shape[1]

    def _check(self, x: Tensor) -> None:
        if x.shape[1] != self.length:
            raise ValueError(f"this oracle's sequences have {self.length} tokens, got {x.shape[1]}")

    def _consistent(self, states: Int[Tensor, "states length"]) -> Float[Tensor, "states points"]:
        """Returns the weight of each point in each state: its own weight, or 0 if an unmasked token differs."""
        agree = torch.ones(len(states), len(self.points), dtype=torch.bool)
        for position in range(self.length):
            token = states[:, position : position + 1]
            agree &= (token == self.mask_id) | (token == self.points[:, position])
        return agree * self.weights

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        self._check(query.x)
        if bool((query.where & (query.x != self.mask_id)).any()):
            return self._looking_at_tokens(query)
        states, inverse = distinct(query.x)
        masked = states == self.mask_id
        rows, positions = masked.nonzero().unbind(-1)
        weight = self._consistent(states)
        probability = torch.empty(len(rows), self.symbols, dtype=torch.float64)
        onehot = (self.points.T.unsqueeze(1) == torch.arange(self.symbols).unsqueeze(-1)).contiguous()
        size = max(1, _CHUNK // (self.symbols * len(self.points)))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            product = weight[rows[part]].unsqueeze(1) * onehot[positions[part]]
            probability[part] = product.sum(-1)
        logits = with_mask_column(probability)
        place = torch.zeros(states.shape, dtype=torch.int64)
        place[masked] = torch.arange(len(rows))
        return logits[place[inverse][query.where]]

    def _looking_at_tokens(self, query: Query) -> Float[Tensor, "rows vocab"]:
        """Answers a query for positions that have a token: each of them is treated as if it were masked."""
        row, position = query.where.nonzero().unbind(-1)
        one = torch.zeros_like(query.where[row]).scatter(1, position.unsqueeze(-1), True)
        x = query.x[row].masked_fill(one, self.mask_id)
        return self(Query(x, one, query.valid[row], query.sequence[row]))

    def log_marginal(self, x: Int[Tensor, "batch length"]) -> Float[Tensor, " batch"]:
        self._check(x)
        states, inverse = distinct(x)
        return (self._consistent(states).sum(-1) / self.total).log()[inverse]

    def completions(self, x: Int[Tensor, " length"]) -> tuple[Int[Tensor, "points length"], Float[Tensor, " points"]]:
        self._check(x.unsqueeze(0))
        weight = self._consistent(x.unsqueeze(0))[0]
        alive = weight > 0
        if not bool(alive.any()):
            raise ValueError(f"the given tokens have probability zero under the oracle: {x.tolist()}")
        return self.points[alive], (weight[alive] / weight.sum()).log()


class TableDenoiser(SupportDenoiser):
    """The exact conditionals of an enumerated joint distribution.

    Args:
        joint: A normalised table of shape `(symbols,) * length`.

    Raises:
        ValueError: If the axes differ in length, or the entries are not probabilities with sum 1 (to 1e-6).
    """

    def __init__(self, joint: Float[Tensor, "..."]) -> None:
        joint = torch.as_tensor(joint).double()
        if joint.ndim < 1 or len(set(joint.shape)) != 1:
            raise ValueError(f"a joint table must have shape (symbols,) * length, got {tuple(joint.shape)}")
        if not bool((joint >= 0).all()) or abs(float(joint.sum()) - 1) > 1e-6:
            raise ValueError(f"a joint table must hold probabilities >= 0 with sum 1, got the sum {float(joint.sum())}")
        symbols, length = joint.shape[0], joint.ndim
        grid = torch.cartesian_prod(*[torch.arange(symbols)] * length).reshape(-1, length)
        super().__init__(grid, joint.reshape(-1), symbols)


def sudoku4_grids() -> Int[Tensor, "288 16"]:
    """Returns the 288 completed 4×4 Sudoku grids with symbols 0..3, row by row, in lexicographic order."""
    rows = list(itertools.permutations(range(4)))
    grids = []
    for four in itertools.product(rows, repeat=4):
        if any(len({row[column] for row in four}) < 4 for column in range(4)):
            continue
        boxes = ({four[r + i][c + j] for i in (0, 1) for j in (0, 1)} for r in (0, 2) for c in (0, 2))
        if all(len(box) == 4 for box in boxes):
            grids.append([symbol for row in four for symbol in row])
    return torch.tensor(grids)


class Sudoku4Denoiser(SupportDenoiser):
    """The exact conditionals of a uniformly random completed 4×4 Sudoku grid."""

    def __init__(self) -> None:
        grids = sudoku4_grids()
        super().__init__(grids, torch.ones(len(grids)), 4)

    def orbits(self) -> Int[Tensor, " points"]:
        """Returns the number of each point's symmetry class: equal for grids that a symmetry maps to each other.

        The symmetries relabel digits; permute rows within a band, bands, columns within a stack, and stacks; and
        transpose the grid: 3,072 in total. There are two classes of grids.
        """
        lines = [list(a + b) for a, b in itertools.permutations([(0, 1), (2, 3)])]
        lines = [[*p[:2][::i], *p[2:][::j]] for p in lines for i in (1, -1) for j in (1, -1)]
        grids = self.points.reshape(-1, 4, 4)
        forms = []
        for rows, columns, flip in itertools.product(lines, lines, (False, True)):
            moved = grids[:, rows][:, :, columns]
            cells = (moved.transpose(1, 2) if flip else moved).reshape(-1, 16)
            # The relabelling that gives the lexicographically least grid makes the first row 0123.
            relabelled = torch.zeros_like(cells[:, :4]).scatter_(1, cells[:, :4], torch.arange(4).expand(len(cells), 4))
            forms.append((relabelled.gather(1, cells) * 4 ** torch.arange(15, -1, -1)).sum(-1))
        return torch.unique(torch.stack(forms).amin(0), return_inverse=True)[1]


def random_table(symbols: int, length: int, seed: int) -> TableDenoiser:
    """Makes a joint distribution that is drawn uniformly from the simplex (symmetric Dirichlet, concentration 1).

    Args:
        symbols: Size of the alphabet.
        length: Tokens per sequence.
        seed: The seed.

    Raises:
        ValueError: If the table would have more than `LIMIT` entries.
    """
    if symbols**length > LIMIT:
        raise ValueError(f"a joint of {symbols}^{length} entries is too large (limit {LIMIT})")
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((symbols,) * length, generator=generator, dtype=torch.float64)
    weights = -torch.log1p(-uniform)
    return TableDenoiser(weights / weights.sum())


def parity_table(groups: int, size: int = 3) -> TableDenoiser:
    """Makes the distribution of fair bits in groups of equal size, where the sum of each group is even.

    Any `size - 1` bits of a group are independent, and determine the last one. So no measure of fewer positions at once
    can distinguish the group from independent bits, and drawing a whole group at once loses ln 2 nats.

    Args:
        groups: Number of groups.
        size: Bits per group.

    Raises:
        ValueError: If there is no group or a group has fewer than two bits, or the table would be too large.
    """
    if groups < 1 or size < 2 or 2 ** (groups * size) > LIMIT:
        raise ValueError(f"parity needs groups of two bits or more, 2^(bits) <= {LIMIT}; got {groups} of {size}")
    bits = torch.cartesian_prod(*[torch.arange(2)] * (groups * size)).reshape(-1, groups, size)
    even = (bits.sum(-1) % 2 == 0).all(-1).double()
    return TableDenoiser((even / even.sum()).reshape((2,) * (groups * size)))

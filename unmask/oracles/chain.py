"""Markov chains and hidden Markov models of any length: exact conditionals by forward–backward."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Query
from .oracle import Oracle, distinct, with_mask_column


class HMMDenoiser(Oracle):
    """The exact conditionals of a hidden Markov model, given any subset of its tokens.

    With hidden states `h`, `p(x, h) = p(h_1) Π p(h_{i+1} | h_i) Π p(x_i | h_i)`. Messages are normalised at every
    position, so sequences may have any length. The cost is `length · states²` per distinct sequence. Sequences of
    different lengths may be in one batch.

    Args:
        initial: Distribution of the first hidden state, `[states]`.
        transition: Row-stochastic matrix, `[states, states]`.
        emission: Distribution of the symbol given the hidden state, `[states, symbols]`.

    Raises:
        ValueError: If the shapes do not fit, or a row is not a distribution (to 1e-6).

    References:
        Rabiner (1989), "A tutorial on hidden Markov models", section III.
    """

    def __init__(
        self,
        initial: Float[Tensor, " states"],
        transition: Float[Tensor, "states states"],
        emission: Float[Tensor, "states symbols"],
    ) -> None:
        initial, transition, emission = (torch.as_tensor(t).double() for t in (initial, transition, emission))
        states = len(initial)
        if initial.ndim != 1 or transition.shape != (states, states) or emission.shape[:1] != (states,):
            raise ValueError(
                f"expected initial [states], transition [states, states], emission [states, symbols]; got"
                f" {list(initial.shape)}, {list(transition.shape)}, {list(emission.shape)}"
            )
        for name, rows in (("initial", initial), ("transition", transition), ("emission", emission)):
            if not bool((rows >= 0).all()) or not bool(((rows.sum(-1) - 1).abs() < 1e-6).all()):
                raise ValueError(f"every row of {name} must be a distribution")
        super().__init__(emission.shape[1])
        self.initial, self.transition, self.emission = initial, transition, emission
        # One row per token id, with the mask token last: the likelihood of each hidden state.
        self._likelihood = torch.cat([emission.T, torch.ones(1, states, dtype=torch.float64)]).contiguous()
        self._backward = transition.contiguous()  # [from, to]: sums over `to`
        self._forward = transition.T.contiguous()  # [to, from]: sums over `from`

    def _forward_messages(self, x: Tensor) -> tuple[Float[Tensor, "batch length states"], Float[Tensor, " batch"]]:
        """Returns `p(h_i | x_{<i})` for every position, and the log-probability of all observed tokens."""
        likelihood = self._likelihood[x]
        message = self.initial.expand(len(x), -1)
        log_total = torch.zeros(len(x), dtype=torch.float64)
        messages = []
        for position in range(x.shape[1]):
            messages.append(message)
            seen = message * likelihood[:, position]
            total = seen.sum(-1, keepdim=True)
            log_total = log_total + total.squeeze(-1).log()
            seen = seen / torch.where(total > 0, total, 1.0)
            message = (seen.unsqueeze(1) * self._forward).sum(-1)
        return torch.stack(messages, 1), log_total

    def _backward_messages(self, x: Tensor, valid: Tensor) -> Float[Tensor, "batch length states"]:
        """Returns messages proportional to `p(x_{>i} | h_i)` for every position; exactly 1 at the last valid one."""
        likelihood = self._likelihood[x]
        message = torch.ones(len(x), len(self.initial), dtype=torch.float64)
        messages = [message]
        for position in range(x.shape[1] - 1, 0, -1):
            seen = message * likelihood[:, position]
            total = seen.sum(-1, keepdim=True)
            seen = seen / torch.where(total > 0, total, 1.0)
            message = (seen.unsqueeze(1) * self._backward).sum(-1)
            # Padding carries no information: the message is reset, so that the amount of padding changes no bit.
            message = torch.where(valid[:, position : position + 1], message, torch.ones_like(message))
            messages.append(message)
        return torch.stack(messages[::-1], 1)

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        # Padding is marked by -1 here, so that a sequence and its beginning stay distinct.
        states, inverse = distinct(torch.where(query.valid, query.x, -1))
        valid = states >= 0
        x = torch.where(valid, states, self.mask_id)
        forward, log_total = self._forward_messages(x)
        hidden = forward * self._backward_messages(x, valid)
        hidden = torch.where(log_total.isfinite()[:, None, None], hidden, torch.zeros_like(hidden))
        rows = hidden[inverse][query.where]
        return with_mask_column(self._emit(rows))

    def _emit(self, hidden: Float[Tensor, "rows states"]) -> Float[Tensor, "rows symbols"]:
        hidden = hidden / hidden.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        probability = torch.zeros(len(hidden), self.symbols, dtype=torch.float64)
        for state in range(len(self.initial)):
            probability += hidden[:, state : state + 1] * self.emission[state]
        return probability

    def log_marginal(self, x: Int[Tensor, "batch length"]) -> Float[Tensor, " batch"]:
        states, inverse = distinct(x)
        return self._forward_messages(states)[1][inverse]


class MarkovDenoiser(HMMDenoiser):
    """The exact conditionals of a Markov chain.

    Args:
        initial: Distribution of the first symbol.
        transition: Row-stochastic matrix.

    Raises:
        ValueError: As `HMMDenoiser`.
    """

    def __init__(self, initial: Float[Tensor, " symbols"], transition: Float[Tensor, "symbols symbols"]) -> None:
        transition = torch.as_tensor(transition)
        super().__init__(torch.as_tensor(initial), transition, torch.eye(len(transition), dtype=torch.float64))

    @staticmethod
    def lazy(symbols: int, stay: float) -> MarkovDenoiser:
        """Makes a chain that keeps its symbol with probability `stay`, and otherwise moves to any other symbol.

        The first symbol is uniform, and so are the moves.

        Raises:
            ValueError: If `stay` is not in `[0, 1]`, or there are fewer than two symbols.
        """
        if not 0 <= stay <= 1 or symbols < 2:
            raise ValueError(f"stay must be a probability, and symbols at least 2; got stay {stay}, symbols {symbols}")
        moves = torch.full((symbols, symbols), (1 - stay) / (symbols - 1), dtype=torch.float64)
        moves.fill_diagonal_(stay)
        return MarkovDenoiser(torch.full((symbols,), 1 / symbols, dtype=torch.float64), moves)

    def _emit(self, hidden: Float[Tensor, "rows states"]) -> Float[Tensor, "rows symbols"]:
        return hidden


def random_markov(symbols: int, seed: int, concentration: float = 1.0) -> MarkovDenoiser:
    """Makes a chain whose initial distribution and transitions are drawn from a symmetric Dirichlet distribution.

    Args:
        symbols: Size of the alphabet.
        seed: The seed.
        concentration: The parameter of the Dirichlet distribution.
    """
    rows = _dirichlet((symbols + 1, symbols), seed, concentration)
    return MarkovDenoiser(rows[0], rows[1:])


def random_hmm(states: int, symbols: int, seed: int, concentration: float = 1.0) -> HMMDenoiser:
    """Makes a hidden Markov model whose distributions are drawn from symmetric Dirichlet distributions.

    Args:
        states: Number of hidden states.
        symbols: Size of the alphabet.
        seed: The seed.
        concentration: The parameter of the Dirichlet distributions.
    """
    hidden = _dirichlet((states + 1, states), seed, concentration)
    return HMMDenoiser(hidden[0], hidden[1:], _dirichlet((states, symbols), seed + 1, concentration))


def _dirichlet(shape: tuple[int, int], seed: int, concentration: float) -> Float[Tensor, "rows symbols"]:
    generator = torch.Generator().manual_seed(seed)
    rates = torch.full(shape, concentration, dtype=torch.float64)
    gamma = torch._standard_gamma(rates, generator)  # because torch.distributions does not take a generator
    return gamma / gamma.sum(-1, keepdim=True)

"""Measures draws in a whole run of ancestral sampling: the unigram entropy of the samples against the oracle's."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Query
from ..draws.categorical import draw as exact_draw
from ..draws.streams import Purpose, as_streams, derive, uniforms
from ..oracles.chain import HMMDenoiser
from .draws import FORMS


def tail_hmm(vocab: int = 8192, common: int = 16, rare: float = 0.25) -> HMMDenoiser:
    """Makes a two-state HMM with a few common symbols and a long tail; each state prefers one half of both.

    Args:
        vocab: Number of symbols, an even number.
        common: Number of common symbols, an even number; they come first.
        rare: Total probability of the other symbols, on average; in one state it is a fifth less, in the other a fifth
            more.
    """
    halves = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64) / (common // 2)
    tail = torch.tensor([[0.6, 0.4], [0.4, 0.6]], dtype=torch.float64) / ((vocab - common) // 2)
    mass = rare * torch.tensor([[0.8], [1.2]], dtype=torch.float64)
    emission = torch.cat(
        [
            ((1 - mass) * halves).repeat_interleave(common // 2, 1),
            (mass * tail).repeat_interleave((vocab - common) // 2, 1),
        ],
        -1,
    )
    stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    return HMMDenoiser(torch.full((2,), 0.5, dtype=torch.float64), stay, emission)


@dataclass(frozen=True)
class UnigramTruth:
    """The exact marginal of every position, and the mean and variance of a sequence's unigram surprise.

    The surprise of a sequence is `Y(x) = -Σ_i log m_i(x_i)`, with `m_i` the oracle's marginal at position `i`. Its mean
    is the sum of the entropies of the `m_i`. Its variance includes the covariances between positions,
    `Cov_ij = Σ_{h,h'} p(h_i = h, h_j = h') f_i(h) f_j(h') - E_i E_j` with `f_i(h) = E[-log m_i(x_i) | h_i = h]`.

    Attributes:
        surprise: `-log m_i(v)` for each position `i` and symbol `v`, in nats; 0 for impossible symbols.
        mean: The mean of `Y`, in nats.
        variance: The variance of `Y`.
    """

    surprise: Float[Tensor, "length symbols"]
    mean: float
    variance: float

    @staticmethod
    def of(oracle: HMMDenoiser, length: int) -> UnigramTruth:
        """Computes the values for an oracle and a length from the matrices of the hidden Markov model."""
        hidden = [oracle.initial]
        for _ in range(length - 1):
            hidden.append(hidden[-1] @ oracle.transition)
        marginal = torch.stack(hidden) @ oracle.emission
        surprise = -torch.where(marginal > 0, marginal, 1.0).log()
        given = torch.einsum("ls,hs->lh", surprise, oracle.emission)
        means = (torch.stack(hidden) * given).sum(-1)
        variance = float((marginal * surprise**2).sum() - (means**2).sum())
        for i in range(length):
            joint = torch.diag(hidden[i])
            for j in range(i + 1, length):
                joint = joint @ oracle.transition
                variance += 2 * float(given[i] @ joint @ given[j] - means[i] * means[j])
        return UnigramTruth(surprise, float(means.sum()), variance)


@dataclass(frozen=True)
class AncestralCheck:
    """The unigram entropy of ancestral samples, compared with the oracle's.

    Attributes:
        name: The kind of draw.
        entropy: Mean unigram surprise of the samples, in nats per token.
        truth: Its exact expectation, the unigram entropy of the oracle, in nats per token.
        error: Standard error of `entropy`, from the exact variance.
        z: Their distance in standard errors, `(ΣY - n E[Y]) / sqrt(n Var[Y])`. For exact sampling it is standard
            normal, by the central limit theorem for `n` independent sequences.
        sequences: Number of independent sequences.
        length: Tokens per sequence.
        vocab: Number of symbols.
        steps: Steps of the time grid.
        numbers: Number of random numbers drawn.
        seconds: Wall-clock time.
    """

    name: str
    entropy: float
    truth: float
    error: float
    z: float
    sequences: int
    length: int
    vocab: int
    steps: int
    numbers: int
    seconds: float

    @property
    def pvalue(self) -> float:
        """The one-sided p-value: the probability that exact sampling gives an entropy as low as this."""
        return 0.5 * math.erfc(-self.z / math.sqrt(2))


def ancestral_entropy_check(
    draw: str = "unmask",
    *,
    oracle: HMMDenoiser | None = None,
    length: int = 8,
    steps: int = 2048,
    sequences: int = 64,
    bits: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> AncestralCheck:
    """Samples a hidden Markov model by ancestral sampling, and tests the unigram entropy of the samples.

    On the linear schedule with `T` steps, a masked position is unmasked in step `j` with probability `Δ = 1/(T - j)`.

    - `draw="unmask"`: two exact draws. A float64 uniform below Δ decides whether a position is unmasked; if it is, its
      token is drawn from the oracle's conditional with `categorical.draw` and the library's own uniforms.
    - `draw="gumbel-float32"`, the *published baseline*, for comparison only: in every step, for every masked position,
      one categorical over `vocab + 1` classes of probabilities `p_v Δ` and `1 - Δ` (stay masked), drawn as the argmax
      of `log p + g` in float32 with `g = -log(-log u)` and one `torch.rand` per class. Symbols with identical
      emissions have identical probabilities; among them the largest uniform wins, and only its noise is computed.
    - `draw="lattice"`: a fast draw from the law of that baseline, for uniforms of any number of `bits`. The largest of
      `n` uniforms on a lattice is drawn by inversion, `m = floor(2^bits (1 - U^{1/n})) + 1` steps below 1.

    The oracle is evaluated again only for sequences that have changed. As in any ancestral sampler, positions that are
    unmasked in the same step are drawn independently of each other, which changes the law by O(length²/steps).

    Args:
        draw: One of `unmask`, `gumbel-float32`, `lattice`.
        oracle: The model; default: `tail_hmm()`.
        length: Tokens per sequence.
        steps: Steps of the time grid. Rare classes are drawn too rarely once `steps · vocab` nears 2²⁴.
        sequences: Number of independent sequences.
        bits: For `lattice`: the number of random bits of a uniform.
        device: The device on which noise is made and tokens are drawn.
        seed: The seed of all random numbers.

    Returns:
        The comparison; its `pvalue` is one-sided towards lower entropy.

    Raises:
        ValueError: If the draw is unknown or a number is out of range.
    """
    if draw not in ("unmask", "gumbel-float32", "lattice"):
        raise ValueError(f"unknown draw {draw!r}; one of unmask, gumbel-float32, lattice")
    if (draw == "lattice") != (bits is not None):
        raise ValueError("draw='lattice' needs bits, and no other draw takes them")
    if min(length, steps, sequences) < 1:
        raise ValueError(f"length, steps and sequences must be at least 1, got {length}, {steps}, {sequences}")
    oracle = tail_hmm() if oracle is None else oracle
    started = time.perf_counter()
    truth = UnigramTruth.of(oracle, length)
    groups = _groups(oracle)
    starts = torch.tensor([group.start for group in groups], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    buffer = torch.empty(0, device=device)
    if draw == "gumbel-float32":
        width = oracle.symbols + 1
        size = (1 << 18) if buffer.device.type == "cpu" else (1 << 26)
        buffer = torch.empty(max(1, size // width), width, device=device)
    streams = as_streams([derive(seed, "ancestral", row) for row in range(sequences)], device)
    x = torch.full((sequences, length), oracle.mask_id)
    log_p = torch.zeros(sequences, length, oracle.symbols, dtype=torch.float64, device=device)
    changed = torch.ones(sequences, dtype=torch.bool)
    numbers = 0
    for step in range(steps):
        masked = x == oracle.mask_id
        if not bool(masked.any()):
            break
        if bool(changed.any()):
            part = x[changed]
            rows = oracle(Query.of(part, oracle.mask_id))[:, : oracle.symbols]
            log_p[(masked & changed.unsqueeze(-1)).to(device)] = rows.to(device)
        row, position = masked.nonzero().unbind(-1)
        delta = 1 / (steps - step)
        if draw == "unmask":
            whether = torch.rand(len(row), dtype=torch.float64, device=device, generator=generator).cpu() < delta
            row, position = row[whether], position[whether]
            what = uniforms(streams[row.to(device)], position.to(device), Purpose.TOKEN)
            numbers += len(whether) + len(row)
            tokens = exact_draw(log_p[row.to(device), position.to(device)], what).cpu()
        else:
            logits = torch.cat(
                [
                    log_p[row.to(device)[:, None], position.to(device)[:, None], starts] + math.log(delta),
                    torch.full((len(row), 1), math.log1p(-delta) if delta < 1 else -math.inf, device=device),
                ],
                -1,
            )
            if bits is None:
                tokens = _published_draw(logits.float(), groups, buffer, generator).cpu()
                numbers += len(row) * (oracle.symbols + 1)
            else:
                tokens = _lattice_draw(logits, groups, bits, generator).cpu()
                numbers += len(row) * (len(groups) + 2)
            drawn = tokens >= 0
            row, position, tokens = row[drawn], position[drawn], tokens[drawn]
        x[row, position] = tokens
        changed = torch.zeros(sequences, dtype=torch.bool)
        changed[row] = True
    surprise = float(truth.surprise[torch.arange(length), x].sum())
    z = (surprise - sequences * truth.mean) / math.sqrt(sequences * truth.variance)
    name = f"{bits}-bit lattice" if draw == "lattice" else draw
    return AncestralCheck(
        name,
        surprise / (sequences * length),
        truth.mean / length,
        math.sqrt(truth.variance / sequences) / length,
        z,
        sequences,
        length,
        oracle.symbols,
        steps,
        numbers,
        time.perf_counter() - started,
    )


def _groups(oracle: HMMDenoiser) -> list[range]:
    """Returns ranges of neighbouring symbols with identical emissions, and so with equal probability in any context."""
    columns = oracle.emission.T
    new = torch.ones(len(columns), dtype=torch.bool)
    new[1:] = (columns[1:] != columns[:-1]).any(-1)
    edges = [*new.nonzero().squeeze(-1).tolist(), len(columns)]
    return [range(a, b) for a, b in pairwise(edges)]


def _published_draw(
    logits: Float[Tensor, "rows groups"],
    groups: list[range],
    buffer: Float[Tensor, "size symbols"],
    generator: torch.Generator,
) -> Int[Tensor, " rows"]:
    """Draws by Gumbel-max in float32 from all symbols and the class "stay masked", which is the last and gives -1."""
    tokens = []
    for part in logits.split(len(buffer)):
        u = buffer[: len(part)].uniform_(generator=generator)
        largest = torch.stack([u[:, g.start : g.stop].amax(-1) for g in groups] + [u[:, -1]], -1)
        winner = (part + FORMS["gumbel"](largest)).argmax(-1)
        token = torch.full_like(winner, -1)
        for row in (winner < len(groups)).nonzero().squeeze(-1).tolist():
            group = groups[int(winner[row])]
            token[row] = group.start + u[row, group.start : group.stop].argmax()
        tokens.append(token)
    return torch.cat(tokens)


def _lattice_draw(
    logits: Float[Tensor, "rows groups"], groups: list[range], bits: int, generator: torch.Generator
) -> Int[Tensor, " rows"]:
    """Draws from the law of `_published_draw` for uniforms of `bits` bits.

    The largest uniform of each group is drawn by inversion, and then a symbol of the winning group.
    """
    u = torch.rand(len(logits), logits.shape[1] + 1, dtype=torch.float64, device=logits.device, generator=generator)
    sizes = torch.tensor([*map(len, groups), 1], dtype=torch.float64, device=logits.device)
    below = (-torch.expm1(torch.log(1 - u[:, :-1]) / sizes) * 2.0**bits).floor() + 1
    clock = -torch.log1p(-(below * 2.0**-bits).clamp(max=1.0))
    winner = (logits - clock.log()).argmax(-1)
    start = torch.tensor([*(g.start for g in groups), -1], device=logits.device)[winner]
    return start + (u[:, -1] * sizes[winner]).floor().long()

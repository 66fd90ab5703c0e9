"""A batch of marginals: entropy, confidence, margin and argmax in one pass over the logits, and exact draws.

Everything works on *rows*: the logits of candidate positions only, `[rows, vocab]`. Statistics never subtract two large
numbers to get a small one, so an entropy of 1e-9 nats is 1e-9 and not 0. Draws are made in float64 from the 53-bit
uniform of a position, so a class of probability 1e-7 comes up once in 10⁷, which a 32-bit Gumbel cannot do
(arXiv:2409.02908, section 4): small vocabularies invert the CDF, larger ones race (see `RACE_FROM`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import whole
from ..errors import LogitsError
from .kernels import row_kernel
from .race import race

RACE_FROM = 256
"""Vocabularies of so many tokens are drawn from by a race (see `draws.race`), smaller ones by inverting the CDF.

Both draw from the same law. A race gives the same token where two evaluations differ by rounding, which an inversion
does less and less as the vocabulary grows; an inversion costs less where there are few tokens (docs/numerics.md has
figures for both). The number is part of what a seed means.
"""

_CHUNK = 1 << 18
"""Elements of logits worked on at once, or a 64th of all: bounds what a pass allocates beyond the logits themselves."""


_SHORT = 1 << 14
"""Terms of a sum that PyTorch does not split between threads, even if there is no other."""


@dataclass(frozen=True)
class Marginals:
    """Statistics of one categorical distribution per row, natural logarithms throughout.

    Confidence and margin are kept as their distance from 1, which stays exact where they round to 1: that is where
    orders have to tell positions apart.

    Attributes:
        entropy: `-Σ p log p` in nats.
        doubt: `1 - max p`.
        closeness: `1 - (p₁ - p₂)`, with `p₁ ≥ p₂` the two largest probabilities.
        token: The most probable token, the lowest id among ties.
        log_norm: `log Σ exp(logit)`, so that `logit - log_norm` is a log-probability.
        log_moment: `log Σ p^β`, if a power `β` was given.
        top: The largest logit; not finite where a row is no distribution (see `check_marginals`).
        tops: The largest logits of parts of each row, which save a kernel work when it draws (see `draw_rows`).
    """

    entropy: Float[Tensor, " rows"]
    doubt: Float[Tensor, " rows"]
    closeness: Float[Tensor, " rows"]
    token: Int[Tensor, " rows"]
    log_norm: Float[Tensor, " rows"]
    log_moment: Float[Tensor, " rows"] | None = None
    top: Float[Tensor, " rows"] | None = None
    tops: Float[Tensor, "rows parts"] | None = None

    @property
    def confidence(self) -> Float[Tensor, " rows"]:
        """The largest probability."""
        return 1 - self.doubt

    @property
    def margin(self) -> Float[Tensor, " rows"]:
        """The largest probability minus the second largest."""
        return 1 - self.closeness


def forbid(logits: Float[Tensor, "rows vocab"], tokens: Sequence[int]) -> Float[Tensor, "rows vocab"]:
    """Takes tokens out of every row of a copy: their logits become `-inf`, which renormalises the rest."""
    return logits.index_fill(1, ids(tuple(tokens), logits.device), -torch.inf)


@lru_cache(maxsize=16)
def ids(tokens: tuple[int, ...], device: torch.device) -> Int[Tensor, " tokens"]:
    """Returns some tokens as a tensor, which is kept."""
    with torch.inference_mode(False):  # it may be kept for the derivatives of others
        return torch.tensor(tokens, dtype=torch.int64, device=device)


def marginals(
    logits: Float[Tensor, "rows vocab"],
    forbidden: Sequence[int] = (),
    power: Float[Tensor, " rows"] | None = None,
    check: bool = True,
) -> Marginals:
    """Computes all statistics of every row in one pass, in float32 or better (float64 stays float64).

    With `d_k = logit_k - max`, `s = Σ_{k≠argmax} e^{d_k}` and `t = Σ_{k≠argmax} e^{d_k}·(-d_k)`:
    `H = log1p(s) + t/(1+s)`, `1 - max p = s/(1+s)` and `1 - margin = (s + e^{d₂})/(1+s)`, none of which cancels
    (the usual `logsumexp - E[logit]` returns 0 where the truth is 4e-7, and a budget of γ = 0 would then unmask
    undetermined positions).

    Args:
        logits: Any float dtype; left as they are. `-inf` entries have probability 0 and leave every statistic finite.
        forbidden: Token ids that count as `-inf` in every row.
        power: A finite `β >= 1` per row, for `log_moment`.
        check: Whether to look for rows that are no distribution. Without, the caller calls `check_marginals` in its own
            time: looking waits for the device.

    Raises:
        LogitsError: If a row contains NaN or `+inf`, or has no finite logit; it names the first such row.
        ValueError: If `logits` is not a floating-point matrix with at least one column.
    """
    if logits.ndim != 2 or logits.shape[1] < 1 or not logits.dtype.is_floating_point:
        raise ValueError(
            f"logits must be a float tensor of shape (rows, vocab), got {logits.dtype} {tuple(logits.shape)}"
        )
    kernel = row_kernel(logits)
    if kernel is None:
        columns, tops = _in_chunks(logits, forbidden, power), None
    else:
        columns, tops = kernel.statistics(logits, forbidden, power)
    top, token, entropy, doubt, closeness, log_norm, *moment = columns
    stats = Marginals(entropy, doubt, closeness, token, log_norm, moment[0] if moment else None, top, tops)
    if check:
        check_marginals(stats)
    return stats


def check_marginals(stats: Marginals) -> None:
    """Raises `LogitsError` if a row is no distribution: NaN or `+inf` in it, or no finite logit."""
    assert stats.top is not None
    bad = ~stats.top.isfinite()
    if bad.any():
        row = int(bad.nonzero()[0])
        value = float(stats.top[row])
        reason = "contain NaN" if value != value else "contain +inf" if value > 0 else "have no mass: all are -inf"
        raise LogitsError(row, reason)


def _in_chunks(logits: Tensor, forbidden: Sequence[int], power: Tensor | None) -> tuple[Tensor, ...]:
    """`_statistics` of a part of the rows at a time, where no kernel can do it."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    size = max(2, max(_CHUNK, logits.numel() // 64) // logits.shape[1])
    if 0 < logits.shape[0] <= size:
        beta = None if power is None else power.to(dtype)
        return _statistics(forbid(logits.contiguous().to(dtype), forbidden), beta)
    chunks = logits.contiguous().split(size)
    powers = [None] * len(chunks) if power is None else power.to(dtype).split(size)
    parts = [_statistics(forbid(chunk.to(dtype), forbidden), beta) for chunk, beta in zip(chunks, powers, strict=True)]
    if not parts:
        none = logits.new_zeros(0, dtype=dtype)
        return (none, none.long(), *[none] * (4 if power is None else 5))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _statistics(z: Tensor, power: Tensor | None) -> tuple[Tensor, ...]:
    """Maximum, argmax, then the statistics of float32 or float64 rows, which it overwrites."""
    if z.shape[0] == 1 and z.shape[1] > _SHORT:
        # PyTorch splits the sum of a single long row between threads, and that of several rows not: a row's bits would
        # depend on whether it is alone.
        return tuple(column[:1] for column in _statistics(z.repeat(2, 1), None if power is None else power.repeat(2)))
    top, token = z.max(-1)
    # A row without a finite maximum is reported by the caller; 0 keeps the arithmetic quiet until then.
    d = z.sub_(top.nan_to_num(0.0, 0.0, 0.0).unsqueeze(-1))
    d.scatter_(-1, token.unsqueeze(-1), -torch.inf)
    second = d.amax(-1).exp()
    e = d.exp()
    s = e.sum(-1)
    moment = None if power is None else (d * power.unsqueeze(-1)).exp().sum(-1)
    # exp underflows to 0 far above this floor, so the product is 0 where d is -inf, instead of NaN.
    t = -(e.mul_(d.clamp_(min=-1e4))).sum(-1)
    z1 = s + 1
    log_z1 = s.log1p()
    statistics = (top, token, log_z1 + t / z1, s / z1, (s + second) / z1, top + log_z1)
    if power is None or moment is None:
        return statistics
    return *statistics, moment.log1p() - power * log_z1


def log_prob(
    logits: Float[Tensor, "rows vocab"], log_norm: Float[Tensor, " rows"], tokens: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Returns the log-probability of one token per row, given the rows' normalisers."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).to(log_norm.dtype) - log_norm


def divergence(
    new: Float[Tensor, "rows vocab"], old: Float[Tensor, "rows vocab"], forbidden: Sequence[int] = ()
) -> Float[Tensor, " rows"]:
    """Returns `KL(new ‖ old)` of each row of logits, in nats; float64, never below 0; NaN of what is no distribution.

    Args:
        new: What is averaged over.
        old: What it is compared with.
        forbidden: Token ids taken out of both.
    """
    size = max(1, max(_CHUNK, new.numel() // 64) // max(1, new.shape[-1]))
    parts = []
    for a, b in zip(new.split(size), old.split(size), strict=True):
        log_p, log_q = (forbid(logits.double(), forbidden).log_softmax(-1) for logits in (a, b))
        p = log_p.exp()
        parts.append(torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1).clamp(min=0))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=new.device)


def most_probable(
    logits: Float[Tensor, "rows vocab"], log_norm: Float[Tensor, " rows"], count: int, forbidden: Sequence[int] = ()
) -> tuple[Int[Tensor, "rows top"], Float[Tensor, "rows top"]]:
    """Returns the most probable tokens of each row and their log-probabilities, best first, lowest id among ties.

    Args:
        logits: The rows; left as they are.
        log_norm: Their normalisers without the forbidden tokens (see `marginals`).
        count: How many; there are fewer if the vocabulary has fewer that are not forbidden.
        forbidden: Token ids that are left out.
    """
    ranked, token = forbid(logits, forbidden).sort(stable=True, dim=-1, descending=True)
    count = min(count, logits.shape[1] - len(forbidden))
    return token[:, :count], ranked[:, :count].to(log_norm.dtype) - log_norm.unsqueeze(-1)


def draw(
    logits: Float[Tensor, "rows vocab"],
    uniform: Float[Tensor, " rows"],
    *,
    temperature: float | Float[Tensor, " rows"] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Tensor, " rows"]:
    """Draws one token per row, in float64: by a race of its tokens, or by inverting its CDF if the vocabulary is small.

    With fewer than `RACE_FROM` tokens row `r` gets the first token `v` with `Σ_{w≤v} p_w > u_r`. From there on it gets
    the token with the smallest `E_v / p_v`, `E_v` a standard exponential made of `u_r` and `v` (see `draws.race`). A
    token of probability 0 is never drawn, not even at `u = 0` or at the largest float below 1.

    Args:
        logits: Rows to draw from; only these are touched.
        uniform: One float64 uniform in `[0, 1)` per row, a multiple of 2⁻⁵³.
        temperature: Divides the logits; 0 takes the argmax (the lowest id among ties). One number, or one per row.
        top_k: Keep the `k` largest logits (ties with the k-th stay). Applied first.
        top_p: Then keep the smallest set of most probable tokens whose mass reaches `p`, at the given temperature.

    Raises:
        ValueError: If a setting is out of range (see `check_draw`).
    """
    check_draw(temperature, top_k, top_p)
    return draw_rows(logits, None, uniform, temperature, top_k, top_p)


def draw_rows(
    logits: Float[Tensor, "all vocab"],
    rows: Int[Tensor, " rows"] | None,
    uniform: Float[Tensor, " rows"],
    temperature: float | Float[Tensor, " rows"] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: Sequence[int] = (),
    stats: Marginals | None = None,
) -> Int[Tensor, " rows"]:
    """`draw` for some rows of the logits (`None`: all), without tokens that are forbidden; checks no setting.

    The statistics of the same logits with the same tokens forbidden change no draw, but save work.
    """
    races, whole = logits.shape[1] >= RACE_FROM, top_k is None and top_p is None
    kernel = row_kernel(logits) if races and whole else None
    tau = None
    if races or isinstance(temperature, Tensor) or temperature != 1:
        tau = torch.as_tensor(temperature, dtype=torch.float64, device=logits.device).expand(len(uniform))
    if kernel is not None and tau is not None:
        rows = torch.arange(len(uniform), device=logits.device) if rows is None else rows
        tops = None if stats is None else stats.tops
        return kernel.draw(logits, rows, uniform.double(), tau.contiguous(), forbidden, tops)
    logits = forbid(logits if rows is None else logits[rows], forbidden)
    size, drawn = max(1, _CHUNK // 2 // max(1, logits.shape[1])), _race if races else _invert
    if 0 < logits.shape[0] <= size:
        return drawn(logits.double(), uniform.double(), tau, top_k, top_p)
    chunks = logits.split(size)
    taus = [None] * len(chunks) if tau is None else tau.split(size)
    parts = [
        drawn(z.double(), u.double(), t, top_k, top_p)
        for z, u, t in zip(chunks, uniform.split(size), taus, strict=True)
    ]
    return torch.cat(parts) if parts else uniform.new_zeros(0, dtype=torch.int64)


def truncate(z: Float[Tensor, "rows vocab"], top_k: int | None, top_p: float | None) -> Float[Tensor, "rows vocab"]:
    """Returns tempered logits with everything outside top-k, then top-p, at `-inf`; a copy if anything changes."""
    if top_k is not None and top_k < z.shape[1]:
        smallest = z.topk(top_k, dim=-1).values[:, -1:]
        z = z.masked_fill(z < smallest, -torch.inf)
    if top_p is not None and top_p < 1:
        ranked, index = z.sort(stable=True, dim=-1, descending=True)
        mass = ranked.softmax(-1).cumsum(-1)
        outside = torch.zeros_like(z, dtype=torch.bool)
        outside[:, 1:] = mass[:, :-1] >= top_p - 1e-12  # what comes before a token already reaches p, up to rounding
        z = z.masked_fill(torch.zeros_like(outside).scatter_(-1, index, outside), -torch.inf)
    return z


def draw_log_prob(
    logits: Float[Tensor, "rows vocab"],
    *,
    temperature: float | Float[Tensor, " rows"] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "rows vocab"]:
    """Returns the log-probabilities, in float64, with which `draw` gives each token under the same settings.

    Raises:
        ValueError: If a setting is out of range (see `check_draw`).
    """
    check_draw(temperature, top_k, top_p)
    tau = torch.as_tensor(temperature, dtype=torch.float64, device=logits.device).expand(len(logits))
    z = _tempered(logits.double(), tau, top_k, top_p)
    point = torch.full_like(z, -torch.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    return torch.where((tau == 0).unsqueeze(-1), point, z.log_softmax(-1))


def _tempered(z: Tensor, tau: Tensor | None, top_k: int | None, top_p: float | None) -> Tensor:
    """The logits a draw is made from, at most 0 (untempered where the temperature is 0); always a new tensor."""
    # Subtracting the maximum first keeps a tiny temperature from overflowing: the argmax stays at 0.
    z = z - z.amax(-1, keepdim=True)
    return truncate(z if tau is None else z / torch.where(tau == 0, 1.0, tau).unsqueeze(-1), top_k, top_p)


def _race(z: Tensor, u: Tensor, tau: Tensor | None, top_k: int | None, top_p: float | None) -> Tensor:
    tau = torch.ones_like(u) if tau is None else tau
    if top_k is not None or top_p is not None:
        z = z.masked_fill(_tempered(z, tau, top_k, top_p) == -torch.inf, -torch.inf)
    return torch.where(tau == 0, z.argmax(-1), race(z, u, torch.where(tau == 0, 1.0, tau)))


def _invert(z: Tensor, u: Tensor, tau: Tensor | None, top_k: int | None, top_p: float | None) -> Tensor:
    cdf = _tempered(z, tau, top_k, top_p).exp_().cumsum(-1)
    total = cdf[:, -1:]
    # u·total can round up to total; one step below it still falls in the last token with mass.
    target = torch.minimum(u.unsqueeze(-1) * total, total.nextafter(torch.zeros_like(total)))
    drawn = torch.searchsorted(cdf, target, right=True).squeeze(-1)
    return drawn if tau is None else torch.where(tau == 0, z.argmax(-1), drawn)


def _check_temperature(temperature: float | Tensor) -> None:
    try:
        values = torch.as_tensor(temperature)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"temperature must be a finite number >= 0, got {temperature!r:.80}") from None
    if values.dtype == torch.bool or not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"temperature must be a finite number >= 0 (0 takes the argmax), got {temperature}")


def check_draw(temperature: float | Tensor, top_k: int | None, top_p: float | None) -> None:
    """Raises `ValueError` unless temperature is finite and >= 0, `top_k` >= 1 and `0 < top_p <= 1`."""
    if not (type(temperature) is float and 0 <= temperature < math.inf):
        _check_temperature(temperature)
    if top_k is not None:
        whole("top_k", top_k)
    if top_p is not None and not (isinstance(top_p, (int, float)) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be in (0, 1] or None, got {top_p!r}")

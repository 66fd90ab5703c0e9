"""Exact laws of draws by Gumbel noise with a ceiling, and the effective temperatures of these draws.

References:
    Zheng, Chen, Mao, Liu, Zhu, Zhang (2024), arXiv:2409.02908, section 4 and appendix: truncated Gumbel noise.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

DISCRETE = 256.0
"""Classes whose probability is below this many lattice steps are treated atom by atom."""

_ATOMS = 1 << 25
"""The largest number of atoms that is treated."""
HORIZON = 45.0
"""An exponential clock above this value cannot decide a race in float64: its probability is below e^-45."""


def truncated_gumbel_law(p: Float[Tensor, " classes"], ceiling: float) -> Float[Tensor, " classes"]:
    """Returns the exact law of `argmax(log p + g)` when the Gumbels `g` are conditioned to lie below a ceiling.

    With `g = -log(-log u)`, the condition `g <= M` means that `u` is uniform on `(0, e^-ε)`, with `ε = e^-M`. So the
    exponential clock `E = -log u` is at least ε, and by memorylessness `E = ε + Exp(1)`. The clock of class `k` rings
    at the time `E_k / π_k`, and the first clock to ring wins:

        P(n wins) = ∫_{ε/π_n} π_n e^{-(π_n t - ε)} Π_{k≠n} min(1, e^{-(π_k t - ε)}) dt.

    For `ε/π_i <= t < ε/π_{i-1}` (`π_1 <= … <= π_K`, `π_0 = 0`), exactly the clocks of the classes `k >= i` can ring. So
    with `S_i = Σ_{k>=i} π_k` the integrand is `π_n exp((K+1-i) ε - S_i t)`, and

        π'_n = π_n Σ_{i<=n} β_i,   β_i = e^{a_i} (1 - e^{-S_i (ε/π_{i-1} - ε/π_i)}) / S_i,
        a_i = (K+1-i) ε - S_i ε/π_i.

    Here the noise is continuous. Noise that is *clamped* at the ceiling, or computed from a uniform on a lattice such
    as `torch.rand`'s, has other laws, in which rare classes lose less (`lattice_gumbel_law`): a class of probability
    `ε/2` keeps `e^-2 = 0.14` of its probability here, and 0.31 with a real float32 uniform.

    Args:
        p: Weights >= 0 in any order, with ties and zeros allowed. They are normalised, and used in float64.
        ceiling: The ceiling `M` in nats, above 0; if it is infinite, the result is `p`.

    Raises:
        ValueError: If `p` is not a vector of finite weights >= 0 with a positive sum, or `ceiling` is not above 0.

    References:
        arXiv:2409.02908, appendix on truncated Gumbel-max; METHOD section 6.
    """
    if not ceiling > 0:
        raise ValueError(f"the ceiling must be a number of nats above 0 (24 ln 2 = 16.64 for float32), got {ceiling}")
    p = _distribution(p)
    epsilon = math.exp(-ceiling)
    if epsilon == 0.0:
        return p
    # Equal classes are summed together: a few exact products instead of a hundred thousand rounded terms.
    levels, level, size = p.unique(return_inverse=True, return_counts=True)
    size = size.double()
    mass = (levels * size).flip(0).cumsum(0).flip(0)
    running = size.flip(0).cumsum(0).flip(0)
    inverse = epsilon / levels
    gap = torch.cat([inverse.new_full((1,), math.inf), inverse[:-1] - inverse[1:]])
    beta = (running * epsilon - mass * inverse).exp() * -torch.expm1(-mass * gap) / mass
    # This is 0/0 where ε/π overflows: for classes of probability 0, or so small that they never win.
    beta = torch.where(inverse.isinf(), 0.0, beta)
    return (levels * beta.cumsum(0))[level]


def lattice_gumbel_law(p: Float[Tensor, " classes"], bits: int) -> Float[Tensor, " classes"]:
    """Returns the law of `argmax(log p - log(-log u))` for `u` uniform on the multiples of `2^-bits` in `[0, 1)`.

    `torch.rand` gives such uniforms (11 bits in float16, 8 in bfloat16, 24 in float32, 53 in float64). Logarithms are
    assumed to be exact, and ties between equal classes are shared (`torch.argmax` on the CPU prefers the first).

    Clock `k` rings at one of the times `-log(1 - m ε)/π_k`, `m = 1 … 2^bits`, `ε = 2^-bits`, each with probability ε.
    The atoms of all classes below 256 ε are sorted by time and summed. The clocks of larger classes are treated as
    continuous, shifted by `ε/2` (with a relative error below `ε²/(12 π²)`, 2e-6). In the limit of one dominating class,
    a class of probability `a ε` keeps `1/(a (e^{1/a} - 1))` of its probability.

    Args:
        p: Weights >= 0; they are normalised.
        bits: The number of random bits of a uniform.

    Raises:
        ValueError: If `p` is not a vector of finite weights >= 0 with a positive sum, `bits` is outside 1…64, or there
            are too many atoms.
    """
    if not 1 <= bits <= 64:
        raise ValueError(f"bits must be the number of random bits of a uniform, 1 to 64, got {bits}")
    p = _distribution(p)
    epsilon = 2.0**-bits
    small = ((p > 0) & (p < DISCRETE * epsilon)).nonzero().squeeze(-1)
    big = (p >= DISCRETE * epsilon).nonzero().squeeze(-1)
    law = torch.zeros_like(p)
    ringing = 0.0
    if len(small):
        rate, level, size = p[small].unique(return_inverse=True, return_counts=True)
        # Times beyond the horizon are left out: the probability that no clock has rung by then is below e^-45.
        count = torch.clamp((-torch.expm1(-rate * HORIZON) / epsilon).floor(), max=2.0**bits).long()
        if int(count.sum()) > _ATOMS:
            raise ValueError(f"the law has {int(count.sum())} atoms, more than the limit of {_ATOMS}; use fewer bits")
        owner = torch.arange(len(rate)).repeat_interleave(count)
        m = (torch.arange(int(count.sum())) - (count.cumsum(0) - count)[owner] + 1).double()
        when = -torch.log1p(-m * epsilon) / rate[owner]
        order = when.argsort(stable=True)
        owner, m, when = owner[order], m[order], when[order]
        # log P(no clock of this level rings at this atom | none has rung before); at the last atom it is -inf.
        silent = size[owner] * torch.log1p(-epsilon / (1 - (m - 1) * epsilon))
        alive = torch.cat([silent.new_zeros(1), silent.cumsum(0)[:-1]]) + _log_survival(p[big], epsilon / 2, when)
        win = alive.exp() * -torch.expm1(silent)
        law[small] = (torch.zeros_like(rate).index_add_(0, owner, win) / size)[level]
        ringing = float(win.sum())
    if len(big):
        law[big] = (1 - ringing) * truncated_gumbel_law(p[big], -math.log(epsilon / 2 / float(p[big].sum())))
    elif ringing > 0:
        law /= ringing
    return law


def _log_survival(p: Tensor, shift: float, when: Tensor) -> Tensor:
    """Returns `log P(no clock of p has rung)` at sorted times `t`: `-Σ_k max(0, p_k t - shift)`."""
    if not len(p):
        return torch.zeros_like(when)
    start, order = (shift / p).sort()
    mass = torch.cat([p.new_zeros(1), p[order].cumsum(0)])
    running = torch.searchsorted(start, when)
    return running * shift - mass[running] * when


def _distribution(p: Tensor) -> Tensor:
    p = torch.as_tensor(p).double().cpu()
    if p.ndim != 1 or not bool(p.isfinite().all() & (p >= 0).all()) or not float(p.sum()) > 0:
        raise ValueError("p must be a vector of finite weights >= 0 with a positive sum")
    return p / p.sum()


def entropy(p: Float[Tensor, " classes"]) -> float:
    """Returns the entropy of normalised weights, in nats."""
    return float(torch.special.entr(_distribution(p)).sum())


def effective_temperature(p: Float[Tensor, " classes"], q: Float[Tensor, " classes"]) -> float:
    """Returns the temperature `T` at which `p^{1/T}`, normalised, has the entropy of `q`, by bisection.

    It is 1 if the entropies are equal, and below 1 if `q` has less. The entropy of `p^{1/T}` rises with `T` from `log`
    of the number of modes to `log` of the size of the support; the result is 0 or `inf` if the entropy of `q` is at or
    beyond one of these ends. If `p` is uniform on its support, every temperature gives the same entropy: the result is
    1 if `q` has that entropy, and NaN if not.

    Raises:
        ValueError: If `p` or `q` is not a vector of finite weights >= 0 with a positive sum.
    """
    p, target = _distribution(p), entropy(q)
    log_p = p[p > 0].log()
    log_p = log_p - log_p.max()
    if abs(target - _tempered_entropy(log_p, 1.0)) <= 1e-13 * (1 + target):
        return 1.0
    modes = int((log_p == 0).sum())
    if modes == len(log_p):
        return math.nan
    if target <= math.log(modes):
        return 0.0
    if target >= math.log(len(log_p)) - 1e-13:
        return math.inf
    low, high = 1.0, 1.0
    while _tempered_entropy(log_p, low) > target and low > 1e-300:
        low /= 2
    while _tempered_entropy(log_p, high) < target and high < 1e300:
        high *= 2
    for _ in range(200):
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break
        low, high = (middle, high) if _tempered_entropy(log_p, middle) < target else (low, middle)
    return math.sqrt(low * high)


def ancestral_step(vocab: int = 32768, steps: int = 1000) -> Float[Tensor, " classes"]:
    """Returns the probabilities of one step of ancestral sampling with `steps` steps.

    They are a Zipf law (`p_v ∝ 1/v`) over `vocab` tokens times `1/steps`, and the probability of staying masked last.
    """
    tokens = 1 / torch.arange(1, vocab + 1, dtype=torch.float64)
    return torch.cat([tokens / tokens.sum() / steps, torch.tensor([1 - 1 / steps], dtype=torch.float64)])


@cache
def ancestral_step_temperature(bits: int, vocab: int = 32768, steps: int = 1000) -> float:
    """Returns the effective temperature of the tokens that a step of ancestral sampling draws with `bits`-bit uniforms.

    The step is that of `ancestral_step`. Its law and that of `lattice_gumbel_law` are renormalised without the class
    "stay masked", and compared by entropy. The result is NaN if no token is ever drawn.
    """
    step = ancestral_step(vocab, steps)
    drawn = lattice_gumbel_law(step, bits)[:-1]
    return effective_temperature(step[:-1], drawn) if float(drawn.sum()) > 0 else math.nan


def _tempered_entropy(log_p: Tensor, temperature: float) -> float:
    return float(torch.special.entr((log_p / temperature).softmax(0)).sum())


def binomial_pvalue(count: int, trials: int, probability: float) -> float:
    """Returns an exact two-sided binomial p-value: twice the smaller tail probability, but at most 1.

    Args:
        count: Number of successes.
        trials: Number of trials.
        probability: The probability of success under the null hypothesis.
    """
    low = float(_binomial_cdf(count, trials, probability))
    high = float(_binomial_cdf(trials - count, trials, 1 - probability))
    return min(1.0, 2 * min(low, high))


def _binomial_cdf(count: int, trials: int, probability: float) -> Tensor:
    k = torch.arange(count + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (log_choose + k * math.log(probability) + (n - k) * math.log1p(-probability)).exp().sum()

"""How many positions are unmasked at once. A budget admits some of the ranked candidates, and always the first one.

A budget may keep a *memory*: a few numbers per sequence, which `start` sets and `admit` updates. It remembers nothing
else, so the sampler is a function of (state, memory) and its law can be computed exactly. Settings that differ between
sequences are also kept there, and stay with their sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.view import View
from .history import Remembered, compare
from .speaker import Speaker

if TYPE_CHECKING:
    from ..sampling.conversation import Conversation, Situation
    from .ranked import Rule


@runtime_checkable
class Budget(Protocol):
    """Decides how much of a ranking is unmasked in one step.

    A budget that remembers how much it has admitted says so by a class attribute `counts = True`. Then nothing that it
    admits may be held back (see `unmask.rules.filters`).
    """

    @property
    def marginal_free(self) -> bool:
        """True if the number admitted depends only on the number of candidates and the memory."""
        ...

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        """Returns the initial memory of sequences that start with this many masks each."""
        ...

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        """Returns which ranked candidates to unmask (at least one, if there is any) and the memory after this step."""
        ...


def leading(count: Int[Tensor, " batch"] | int, like: Bool[Tensor, "batch length"]) -> Bool[Tensor, "_ length"]:
    """Marks the first `count` columns of each row: one row for all if there is one count for all."""
    place = torch.arange(like.shape[1], device=like.device).unsqueeze(0)
    return place < (count.unsqueeze(-1) if isinstance(count, Tensor) else count)


def no_memory(masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch 0"]:
    """The memory of a rule that keeps none."""
    return torch.empty(len(masked), 0, dtype=torch.float64, device=masked.device)


def probability(name: str, value: float) -> None:
    """Raises `ValueError` if a setting is not a probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability in [0, 1], got {value}")


@dataclass(frozen=True)
class TopK:
    """The first `k` candidates, or as many as there are. `TopK(1)` is exact: one position per evaluation.

    Raises:
        ValueError: If `k` is not a whole number >= 1.
    """

    k: int
    marginal_free: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("k", self.k)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        return leading(self.k, ranked.candidate) & ranked.candidate, ranked.memory


def One() -> TopK:
    """One candidate at a time: no dependence error, as many evaluations as masks."""
    return TopK(1)


@dataclass(frozen=True)
class All:
    """Every candidate at once: one evaluation per block, the product of the marginals."""

    marginal_free: bool = field(default=True, init=False, repr=False)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        return ranked.candidate, ranked.memory


@dataclass(frozen=True)
class Steps:
    """A fixed number of evaluations per sequence: each unmasks `ceil(masks left / steps left)` (LLaDA's quota).

    If a sequence has fewer masks than steps, each evaluation unmasks one. The memory is (masks left, steps left) of the
    whole sequence. A step cannot unmask positions beyond its block, so each block may cost one more evaluation.

    Raises:
        ValueError: If `steps` is not a whole number >= 1.
    """

    steps: int
    marginal_free: bool = field(default=True, init=False, repr=False)
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("steps", self.steps)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return torch.stack([masked.double(), torch.full_like(masked, self.steps, dtype=torch.float64)], -1)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        left, steps = ranked.memory.unbind(-1)
        quota = torch.ceil(left / steps.clamp(min=1)).clamp(min=1)
        admitted = leading(quota.long(), ranked.candidate) & ranked.candidate
        return admitted, torch.stack([left - admitted.sum(-1), steps - 1], -1)


@dataclass(frozen=True)
class Threshold:
    """Every candidate whose `max p` reaches the threshold, and always the first (Fast-dLLM, arXiv:2505.22618).

    The comparison is `1 - max p <= 1 - threshold`, which is exact near 1: a threshold of 1 admits only what is certain.

    Raises:
        ValueError: If `threshold` is not in `[0, 1]`.
    """

    threshold: float
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        probability("threshold", self.threshold)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        sure = ranked.doubt.double() <= 1 - self.threshold
        sure[:, :1] = True
        return sure & ranked.candidate, ranked.memory


@dataclass(frozen=True)
class Factor:
    """The longest prefix of `n` positions with `(n + 1) (1 - max p of the last) < factor`, at least one (Fast-dLLM).

    In the confidence order the left side never decreases, so this is "the largest n" of the paper. It bounds how far a
    product of confident marginals can be from the most probable joint.

    Raises:
        ValueError: If `factor` is not a finite number > 0.

    References:
        Wu et al. (2025), arXiv:2505.22618, section 3.3 and Theorem 1: factor-based parallel decoding.
    """

    factor: float
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor must be a finite number > 0, got {self.factor}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        n = torch.arange(1, ranked.doubt.shape[1] + 1, device=ranked.doubt.device)
        fits = ranked.candidate & ((n + 1) * ranked.doubt.double() < self.factor)
        count = fits.cumprod(-1).sum(-1).clamp(min=1)
        return leading(count, ranked.candidate) & ranked.candidate, ranked.memory


@dataclass(frozen=True)
class Stable(Speaker):
    """Every candidate that is both confident and stable, and the first one if there is none (KLASS).

    A position is confident if `max p > threshold`. It is stable if each of the last `history` evaluations moved its
    marginal by less than `kl` nats, measured as `KL(now || before)`. No position is stable during the first `history`
    evaluations of its block.

    Raises:
        ValueError: If `threshold` is not in `[0, 1]`, `kl` is not >= 0 or `history` is not a whole number >= 1.

    References:
        Kim et al. (2025), arXiv:2511.05664, KLASS, with its settings for LLaDA as defaults.
    """

    threshold: float = 0.9
    kl: float = 0.01
    history: int = 2
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        probability("threshold", self.threshold)
        if not self.kl >= 0:
            raise ValueError(f"kl must be a number of nats >= 0, got {self.kl}")
        whole("history", self.history)

    def turn(self, rule: Rule, seen: Situation) -> Conversation:
        """Takes one turn, which compares the evaluation with those before it."""
        return compare(rule, seen)

    def remember(self, numbers: Float[Tensor, "batch memory"]) -> Remembered:
        """Returns the initial memory: the budget's numbers, and room for the last evaluation."""
        return Remembered(numbers)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        assert ranked.drift is not None
        ready = ranked.candidate & (ranked.doubt.double() < 1 - self.threshold) & (ranked.drift < self.kl)
        ready[:, 0] |= ranked.candidate[:, 0] & ~ready.any(-1)
        return ready, ranked.memory


def entropy_bound(
    entropy: Float[Tensor, "batch length"], gamma: float | Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """Counts the leading positions whose dependence error fits `gamma` nats.

    Takes the longest prefix `U` with `sum(H_U) - max(H_U) <= gamma`. The left side bounds the dependence error of `U`,
    the divergence caused by drawing its positions independently. It never decreases as the prefix grows, in any order.

    Args:
        entropy: Marginal entropies, in nats, in unmasking order; `inf` past the last mask.
        gamma: The budget, in nats. At 0, the prefix ends before the second position of positive entropy.

    Returns:
        How many positions to unmask: at least 1 wherever a mask remains.

    Raises:
        ValueError: If `gamma` is negative or NaN.

    References:
        Ben-Hamu et al. (2025), arXiv:2505.24857, the EB-Sampler's unmasking rule.
    """
    return (_dependence(entropy) <= check_gamma(gamma).to(entropy.device).reshape(-1, 1)).sum(-1)


def _dependence(entropy: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
    """Returns sum minus maximum of the entropies of every prefix, `inf` past the last mask."""
    # Written as a sum of the smaller of each entropy and the maximum before it: exact where subtracting a running
    # maximum would round a tiny entropy away and let it through at gamma = 0.
    h = entropy.double()
    smaller = torch.minimum(h[:, 1:], h.cummax(-1).values[:, :-1])
    bound = torch.cat([torch.zeros_like(h[:, :1]), smaller.cumsum(-1)], -1)
    return bound.masked_fill(~h.isfinite(), torch.nan)  # NaN fits no budget, not even an infinite one


def check_gamma(gamma: float | Tensor) -> Float[Tensor, "..."]:
    """Returns `gamma` as float64, or raises `ValueError` if it is negative or NaN."""
    values = torch.as_tensor(gamma, dtype=torch.float64)
    if not bool((values >= 0).all()):
        raise ValueError(f"gamma must be a number of nats >= 0 (inf unmasks everything), got {values.tolist()}")
    return values


def same_numbers(one: float | Tensor, other: float | Tensor) -> bool:
    """Whether two settings are the same number; those with a number for each sequence only if they are one object."""
    return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other)


@dataclass(frozen=True, eq=False)
class EntropyBound:
    """The EB-Sampler's budget: the longest prefix with `ΣH - max H <= gamma` nats (arXiv:2505.24857).

    Args:
        gamma: Nats that each sequence may spend per evaluation: one number for all sequences, or one per sequence (a
            float64 tensor gives exactly what one number would). There is no default: a larger value takes fewer
            evaluations and makes a larger dependence error; the useful range is 0.001 to 1.

    Raises:
        ValueError: If `gamma` is negative or NaN, or has another length than the batch.
    """

    gamma: float | Float[Tensor, " batch"]
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if check_gamma(self.gamma).ndim > 1:
            raise ValueError("gamma is one number, or one per sequence")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1"]:
        gamma = check_gamma(self.gamma).to(masked.device)
        if gamma.ndim == 1 and len(gamma) != len(masked):
            raise ValueError(f"gamma has {len(gamma)} values for a batch of {len(masked)} sequences")
        return gamma.expand(len(masked)).unsqueeze(-1)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        fits = _dependence(ranked.entropy) <= ranked.memory[:, :1]
        return fits & ranked.candidate, ranked.memory

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntropyBound) and same_numbers(self.gamma, other.gamma)

    def __hash__(self) -> int:
        return hash(self.gamma)

    def __repr__(self) -> str:
        shown = self.gamma if isinstance(self.gamma, (int, float)) else torch.as_tensor(self.gamma).tolist()
        return f"EntropyBound(gamma={shown})"


@dataclass(frozen=True)
class CarriedBound:
    """A total of `epsilon` nats for the whole sequence: later evaluations may spend what earlier ones left.

    A step costs `ΣH - max H` nats, which bounds its dependence error, and the steps of a sequence never cost more than
    `epsilon` together. The divergence is at most the expected cost over the data, so with exact marginals
    `KL(data || sampler) <= epsilon` for any number of evaluations (with `EntropyBound` the bound grows with them). To
    save nats for later steps, a step takes the longest prefix of `k` positions that costs no more than their share of
    what is left, `nats left · k / masks left`; or, with a `cap`, the longest that costs at most
    `min(nats left, cap · epsilon)`.

    The memory is (nats left, masks left) of the whole sequence.

    Args:
        epsilon: Nats per sequence. 0 gives what `EntropyBound(0)` gives; infinity unmasks everything at once.
        cap: The largest share of `epsilon` that one step may spend, in `(0, 1]`; `None` shares it out by masks.

    Raises:
        ValueError: If `epsilon` is negative or NaN, or `cap` is not in `(0, 1]`.
    """

    epsilon: float
    cap: float | None = None
    marginal_free: bool = field(default=False, init=False, repr=False)
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be a number of nats >= 0 (inf unmasks everything), got {self.epsilon}")
        if self.cap is not None and not 0 < self.cap <= 1:
            raise ValueError(f"cap is a share in (0, 1] or None, got {self.cap}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        left = masked.double()
        return torch.stack([torch.full_like(left, self.epsilon), left], -1)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        cost = _dependence(ranked.entropy)
        nats, masks = ranked.memory[:, :1], ranked.memory[:, 1:]
        k = torch.arange(1, cost.shape[1] + 1, dtype=torch.float64, device=cost.device)
        allowed = nats * k / masks if self.cap is None else nats.clamp(max=self.cap * self.epsilon)
        fits = (cost <= allowed) & ranked.candidate
        admitted = (k <= torch.where(fits, k, 0.0).amax(-1, keepdim=True)) & ranked.candidate
        spent = cost.masked_fill(~admitted, 0.0).amax(-1, keepdim=True)
        return admitted, torch.cat([(nats - spent).clamp(min=0), masks - admitted.sum(-1, keepdim=True)], -1)

"""The information curve of a model, and the optimal group sizes for the uniform order.

In a uniformly random order, drawing `a` of `n` masked tokens at once costs, in expectation over orders and data,

    a h(n) - (h(n) + h(n - 1) + ... + h(n - a + 1)),        h(n) = E[ -log p_i(x_i | all but n tokens) ],

more nats than drawing them one at a time. With exact conditionals, this is the expected dependence error of the step.
So the loss of a sequence of group sizes is the error of a left Riemann sum of the curve `h`, and the sizes with the
least loss for a given number of evaluations are a shortest path. The NELBO is an average of the curve over the number
of masks.

References:
    Chen, Cong and Li (2025), arXiv:2511.04647; Lavenant and Zanella (2025), arXiv:2510.25544.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..denoiser import Denoiser, Query
from ..draws.categorical import marginals
from ..oracles.oracle import Oracle
from ..sampling.loop import Tokens
from .nelbo import surprise_by_count

LIMIT = 1 << 22
"""The largest number of (completion, set of masks) pairs that `oracle_curve` evaluates."""


@dataclass(frozen=True)
class InformationCurve:
    """The uncertainty of a token, as a function of the number `n` of masked tokens (itself and `n - 1` random others).

    Attributes:
        nats: `h(1), h(2), ...`: the expected surprise of a masked token, in nats. It never decreases with `n`, because
            fewer known tokens give less information.
        evaluations: The number of evaluations from which each value was estimated; 0 if the value is interpolated or
            exact.
    """

    nats: Float[Tensor, " masks"]
    evaluations: Int[Tensor, " masks"]

    def loss(self, sizes: Sequence[int]) -> float:
        """Returns the expected loss of groups of these sizes compared with one token at a time, in the uniform order.

        It is in nats. With exact conditionals it is the dependence error, an upper bound on the divergence from the
        data.

        Raises:
            ValueError: If the sizes are not integers >= 1 that add up to the length of the curve.
        """
        if sum(sizes) != len(self.nats) or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"group sizes must be integers >= 1 that add up to {len(self.nats)}, got {sizes}")
        left = len(self.nats) - torch.tensor([0, *sizes]).cumsum(0)
        return float(self._losses()[left[:-1], left[1:]].sum())

    def _losses(self) -> Float[Tensor, "before after"]:
        """Returns the loss of a group by the number of masks before and after it; infinite unless masks decrease."""
        count = torch.arange(len(self.nats) + 1)
        h = torch.cat([torch.zeros(1, dtype=torch.float64), self.nats.double()])
        total = h.cumsum(0)
        loss = (count.unsqueeze(-1) - count) * h.unsqueeze(-1) - (total.unsqueeze(-1) - total)
        return loss.masked_fill(count.unsqueeze(-1) <= count, torch.inf)


def optimal_sizes(curve: InformationCurve, evaluations: int) -> tuple[int, ...]:
    """Finds the group sizes with the least loss for a number of evaluations, by dynamic programming.

    Args:
        curve: The curve of the model.
        evaluations: The number of groups.

    Returns:
        The sizes from the first group to the last, as the budget `Groups` takes them.

    Raises:
        ValueError: If the number is not a whole number from 1 to the length of the curve.
    """
    masks = len(curve.nats)
    whole(f"evaluations for {masks} tokens", evaluations, 1, masks)
    loss = curve._losses()
    best = torch.full((masks + 1,), torch.inf, dtype=torch.float64)  # least loss from each number of masks to the end
    best[0] = 0.0
    after: list[Tensor] = []
    for _ in range(evaluations):
        best, to = (loss + best).min(-1)
        after.append(to)
    sizes, left = [], masks
    for to in reversed(after):
        sizes.append(left - int(to[left]))
        left = int(to[left])
    return tuple(sizes)


def measure_curve(
    denoiser: Denoiser,
    x: Tokens,
    *,
    maskable: Bool[Tensor, "batch length"] | None = None,
    strata: int = 16,
    replicates: int = 1,
    seed: int | None = None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> InformationCurve:
    """Measures the curve of a model on data, with the same evaluations as an estimate of its NELBO.

    The values are fitted by a curve that never decreases (weighted least squares), because noise would otherwise make
    some groups look like a gain. Values for numbers of masks that did not occur are interpolated linearly.

    Args:
        denoiser: The model; it must not have timestep conditioning.
        x: Complete sequences; the length of the curve is the largest number of maskable tokens of a sequence.
        maskable: False at tokens that are never masked; default: all may be masked.
        strata: Evaluations per sequence and replicate, with equally many different shares of masks.
        replicates: Number of repetitions.
        seed: Gives row `r` the stream `derive(seed, r)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence.
        batch_size: Masked sequences per evaluation of the model.
        on_batch: Called with the number of masked sequences just evaluated.

    Raises:
        ValueError: If a sequence contains a mask or has nothing to mask, or an argument is out of range.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.
    """
    _, length, counts, value = surprise_by_count(
        denoiser,
        x,
        maskable=maskable,
        strata=strata,
        replicates=replicates,
        seed=seed,
        streams=streams,
        batch_size=batch_size,
        schedule=None,
        on_batch=on_batch,
    )
    number = torch.bincount(counts - 1, minlength=int(length.max())).cpu()
    total = torch.bincount(counts - 1, value / counts, minlength=int(length.max())).cpu()
    return InformationCurve(_increasing(total / number, number), number)


def oracle_curve(oracle: Oracle, length: int) -> InformationCurve:
    """Computes the exact curve of an oracle, by enumerating all completions and all sets of masks.

    Args:
        oracle: The oracle.
        length: Tokens per sequence.

    Raises:
        ValueError: If there are too many of them.
    """
    points, log_p = oracle.completions(torch.full((length,), oracle.mask_id))
    if len(points) << length > LIMIT:
        raise ValueError(
            f"{len(points)} completions of {length} masks have too many sets of masks for an exact curve (limit"
            f" {LIMIT}); measure it on samples"
        )
    nats = torch.zeros(length, dtype=torch.float64)
    for n in range(1, length + 1):
        sets = list(itertools.combinations(range(length), n))
        for where in sets:
            x = points.clone()
            x[:, list(where)] = oracle.mask_id
            entropy = marginals(oracle(Query.of(x, oracle.mask_id))).entropy.reshape(len(points), n)
            nats[n - 1] += (log_p.exp() * entropy.mean(-1)).sum() / len(sets)
    return InformationCurve(nats, torch.zeros(length, dtype=torch.int64))


def _increasing(value: Float[Tensor, " n"], weight: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Returns the closest values that never decrease (isotonic regression by pooling adjacent violators).

    Values without weight are interpolated.
    """
    blocks: list[tuple[float, float, list[int]]] = []  # value, weight, indices
    for where, (v, w) in enumerate(zip(value.tolist(), weight.tolist(), strict=True)):
        if not w:
            continue
        blocks.append((v, float(w), [where]))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v0, w0, at0), (v1, w1, at1) = blocks[-2:]
            blocks[-2:] = [((v0 * w0 + v1 * w1) / (w0 + w1), w0 + w1, at0 + at1)]
    known = torch.tensor([where for *_, at in blocks for where in at])
    fitted = torch.tensor([v for v, _, at in blocks for _ in at], dtype=torch.float64)
    position = torch.arange(len(value))
    right = torch.searchsorted(known, position).clamp(max=len(known) - 1)
    left = (right - (known[right] > position).long()).clamp(min=0)
    share = (position - known[left]).double() / (known[right] - known[left]).clamp(min=1)
    return torch.lerp(fitted[left], fitted[right], share.clamp(0, 1))

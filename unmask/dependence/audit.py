"""What a run shows about the prices it was run by: predicted against realised movement.

Free of charge: an evaluation after a draw tells how far the predictions of what is still masked really moved. With
`U` drawn, `KL(p_i(· | x_U) ‖ p_i)` has the expectation `I(x_i; x_U | context)`, which is what the price of `i` against
`U` stands for. It says whether the profile is right about these contexts. It says nothing about the positions that
*were* drawn together, which is where a wrong price does harm: they are not masked any more.

For an extra evaluation: of a set drawn together, in a random order, take a random place. With only the tokens before
it filled in, the model tells how far its prediction at that place should have moved, `KL(p_i(· | those before) ‖
p_i)`, times the number of places. The sum over places is the dependence error of the step, one token after the other,
so this estimates what the run lost, pairwise or not. (The tokens before are independent draws, as the sampler's are,
where the total correlation takes an average over joint ones. The two agree where the step loses little.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Denoiser, Query
from ..draws.categorical import divergence, marginals
from ..draws.streams import Purpose, uniforms
from ..rules.dependence import Priced
from ..rules.ranked import Rule
from ..sampling.batch import Tokens
from ..sampling.loop import Sampler
from ..sampling.result import Result, StepInfo
from ..sampling.state import State
from ..sampling.view import View, spread


@dataclass(frozen=True)
class Audit:
    """Movements that a run predicted, and what they were. All in nats, one number per sequence.

    Attributes:
        predicted: Σ over evaluations after the first, and over the positions still masked, of the price of what was
            drawn in between, `min(H_i, dependence)`.
        realised: Σ over the same of `KL(p_i now ‖ p_i before)`.
        compared: How many such movements there were.
        charged: What the rule charged for the sets it drew, estimated from the places that were tested.
        lost: What drawing them together lost, estimated from the same places. Unbiased for any share of tests.
        tests: Extra evaluations made for the last two; not in the run's NFE.
    """

    predicted: Float[Tensor, " batch"]
    realised: Float[Tensor, " batch"]
    compared: Int[Tensor, " batch"]
    charged: Float[Tensor, " batch"]
    lost: Float[Tensor, " batch"]
    tests: Int[Tensor, " batch"]

    def movement(self) -> tuple[float, float]:
        """Realised over predicted movement, with the standard error over sequences; NaN if nothing was predicted."""
        total = float(self.predicted.sum())
        if total == 0:
            return float("nan"), float("nan")
        ratio = float(self.realised.sum()) / total
        residual = self.realised - ratio * self.predicted
        return ratio, float(residual.square().sum().sqrt()) / total

    def excess(self) -> tuple[float, float]:
        """What sets lost beyond what they were charged, in nats a sequence, with the standard error over sequences.

        Above 0 by several errors, the prices miss something: what shows only in more than two positions, or contexts
        unlike those of the calibration. NaN without extra evaluations.
        """
        if not bool(self.tests.any()):
            return float("nan"), float("nan")
        beyond = self.lost - self.charged
        return float(beyond.mean()), float(beyond.std()) / len(beyond) ** 0.5


def audited_sample(
    denoiser: Denoiser,
    x: Tokens,
    rule: Rule,
    *,
    tests: float = 0.0,
    seed: int | None = None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
    temperature: float | Float[Tensor, " batch"] = 1.0,
    blocks: int | Int[Tensor, "batch length"] | None = None,
    trace: bool = False,
) -> tuple[Result, Audit]:
    """Samples as `sample` does, and looks at whether the rule's prices were right.

    Args:
        denoiser: The model; it must not want the time.
        x: See `sample`, as for what follows.
        rule: One whose budget charges for dependence (see `unmask.rules.dependence.Priced`): `dependence-bound`.
        tests: The share of the steps with more than one position that are tested, by one extra evaluation each. It
            changes no sample.
        seed: Gives row `r` the stream `derive(seed, r)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence.
        temperature: The temperature of the draw. At values other than 1 a movement is not a mutual information.
        blocks: Window length, or the block number of every position.
        trace: Keep what was unmasked when.

    Returns:
        What `sample` returns with the same arguments, and the audit.

    Raises:
        ValueError: If the rule has no prices, the share of tests is not in [0, 1], the denoiser wants the time, or an
            argument is out of range.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.
    """
    if not isinstance(rule.budget, Priced):
        raise ValueError(
            "an audit compares movements with the prices of a budget that charges for dependence, such as"
            f" dependence-bound; got {rule.budget}"
        )
    if not 0 <= tests <= 1:
        raise ValueError(f"tests is the share of steps tested, in [0, 1], got {tests}")
    if getattr(denoiser, "wants_time", False):
        raise ValueError("an audit compares evaluations of one model, not of several times: give one that ignores time")
    watch = _Watch(denoiser, rule.budget, tests)
    sampler = Sampler(watch, rule)
    state = sampler.start(x, seed=seed, streams=streams, temperature=temperature, blocks=blocks)
    watch.sums = torch.zeros(6, len(state.x), dtype=torch.float64, device=state.x.device)
    result = sampler.run(state, trace=trace, on_step=watch.after)
    predicted, realised, compared, charged, lost, made = watch.sums
    return result, Audit(predicted, realised, compared.long(), charged, lost, made.long())


@dataclass(frozen=True)
class _Step:
    """An evaluation, and the price of what was drawn after it for every position."""

    query: Query
    logits: Float[Tensor, "rows vocab"]
    price: Float[Tensor, "batch length"]


class _Watch:
    """A denoiser that remembers its last answer, and compares it with the next one."""

    def __init__(self, denoiser: Denoiser, bound: Priced, tests: float) -> None:
        self.denoiser, self.bound, self.tests = denoiser, bound, tests
        self.vocab_size, self.mask_id = denoiser.vocab_size, denoiser.mask_id
        self.max_length: int | None = getattr(denoiser, "max_length", None)
        self.sums = torch.zeros(0)
        self.answer: tuple[Query, Tensor] | None = None
        self.last: _Step | None = None

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        logits = self.denoiser(query)
        self.answer = query, logits
        return logits

    def after(self, state: State, info: StepInfo) -> None:
        """Compares the step's evaluation with the one before, then prices what the step drew."""
        assert self.answer is not None
        query, logits = self.answer
        if self.last is not None:
            self._compare(self.last, query, logits)
        masked = (query.x == self.mask_id) & query.valid
        noise = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        view = View.blank(query.where, noise, noise[:, :0], masked, query.valid & ~masked)
        view = view.measured(marginals(logits, [self.mask_id]))
        # The set in a random order, and the place in it that is tested: the first of `count - 1` is the second.
        streams, visit = state.streams[info.sequence], 3 * state.nfe[info.sequence]
        position = torch.arange(masked.shape[1], device=masked.device)
        order = uniforms(streams.unsqueeze(-1), position, Purpose.AUDIT, visit.unsqueeze(-1))
        order = order.masked_fill(~info.chosen, 2.0).argsort(-1)
        count = info.chosen.sum(-1)
        share, which = (uniforms(streams, torch.zeros_like(streams), Purpose.AUDIT, visit + n) for n in (1, 2))
        test = (count > 1) & (share < self.tests)
        place = 1 + (which * (count - 1)).long().clamp(max=(count - 2).clamp(min=0))
        pairs, price, charge = self.bound.pairs(view), torch.zeros_like(view.entropy).double(), noise[:, 0]
        for number in range(int(count.max())):
            here = order[:, number : number + 1]
            own = price.gather(1, here).squeeze(-1)
            charge = torch.where(place == number, own, charge)
            grown = torch.minimum(view.entropy.double(), pairs.admit(here))
            price = torch.where((number < count).unsqueeze(-1), grown, price)
        self.last = _Step(query, logits, price)
        if bool(test.any()):
            self._test(state, info, query, logits, order, place, test, charge * (count - 1) / self.tests, count)

    def _compare(self, before: _Step, query: Query, logits: Tensor) -> None:
        """Adds up what moved between two evaluations, at positions that both answered for."""
        row = torch.searchsorted(before.query.sequence, query.sequence)  # both are in order, and none is new
        both = query.where & before.query.where[row]
        moved = divergence(
            logits[both[query.where]], self._rows(before.query, before.logits, row, both), [self.mask_id]
        )
        for number, values in enumerate((before.price[row][both], moved, torch.ones_like(moved))):
            self._add(number, query.sequence, both.nonzero()[:, 0], values)

    def _test(
        self,
        state: State,
        info: StepInfo,
        query: Query,
        logits: Tensor,
        order: Int[Tensor, "rows length"],
        place: Int[Tensor, " rows"],
        test: Bool[Tensor, " rows"],
        charged: Float[Tensor, " rows"],
        count: Int[Tensor, " rows"],
    ) -> None:
        """One extra evaluation of each sequence tested: of one place, with the places before it filled in."""
        rank = order.argsort(-1)
        x = torch.where(info.chosen & (rank < place.unsqueeze(-1)), state.x[info.sequence], query.x)
        where = info.chosen & (rank == place.unsqueeze(-1))
        row = test.nonzero().squeeze(-1)
        extra = Query(x[row], where[row], query.valid[row], query.sequence[row])
        moved = divergence(self.denoiser(extra), self._rows(query, logits, row, extra.where), [self.mask_id])
        lost = moved * (count - 1)[row] / self.tests
        for number, values in ((3, charged[row]), (4, lost), (5, torch.ones_like(lost))):
            self._add(number, query.sequence, row, values)

    @staticmethod
    def _rows(query: Query, logits: Tensor, row: Tensor, where: Tensor) -> Float[Tensor, "rows vocab"]:
        """The logits of some rows of a query, at some of the positions it answered for."""
        number = spread(torch.arange(len(logits), device=logits.device), query.where, -1)
        return logits[number[row][where]]

    def _add(self, number: int, sequence: Tensor, row: Tensor, values: Tensor) -> None:
        self.sums[number].index_add_(0, sequence[row], values.to(self.sums))

"""The only sampling loop: `step(state) -> (state, info)`, and `sample(...)` on top of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Denoiser, Query, check_denoiser
from ..draws.categorical import (
    Marginals,
    check_draw,
    check_marginals,
    draw_rows,
    forbid,
    log_prob,
    marginals,
    most_probable,
)
from ..draws.streams import Purpose, uniforms
from ..errors import LogitsError
from ..independence import tested
from ..rules.history import Past
from ..rules.rule import Rule
from ..rules.scored import Scored, ScoredOrder
from ..verification import advance
from .batch import Tokens, as_batch, stream_ids
from .blocks import open_block, windows
from .host import HostMasks, to_host, where_true
from .result import Result, StepInfo
from .view import View, spread


@dataclass(frozen=True)
class State:
    """Where a batch stands: everything the next step depends on. Steps return a new one and never change the old.

    Attributes:
        x: Tokens, right-padded with the mask token.
        valid: False at padding.
        pending: Positions still to unmask; `False` everywhere means the sequence is finished.
        block: Number of the block of each position; the lowest unfinished one is open.
        streams: The random stream of each sequence.
        token_noise: The uniform that draws the token of each position.
        order_noise: The uniform that random orders and clocks use.
        memory: The rule's memory of each sequence.
        temperature: The draw's temperature of each sequence.
        nfe: Evaluations each sequence took part in.
        evaluations: States of each sequence that were evaluated: more than `nfe` where a rule evaluates ahead.
        past: The last evaluation, if the rule compares with it.
    """

    x: Int[Tensor, "batch length"]
    valid: Bool[Tensor, "batch length"]
    pending: Bool[Tensor, "batch length"]
    block: Int[Tensor, "batch length"]
    streams: Int[Tensor, " batch"]
    token_noise: Float[Tensor, "batch length"]
    order_noise: Float[Tensor, "batch length"]
    memory: Float[Tensor, "batch memory"]
    temperature: Float[Tensor, " batch"]
    nfe: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    past: Past | None = None

    @property
    def finished(self) -> Bool[Tensor, " batch"]:
        """True where no mask remains."""
        return ~self.pending.any(-1)


@dataclass(frozen=True)
class Plan:
    """One evaluation and what the rule made of it, for the rows of `query`.

    Attributes:
        where: The positions that were evaluated: the candidates, or only the chosen ones if the rule is blind.
        logits: Their logits, row-major, as the denoiser gave them: forbidden tokens are still in.
        marginals: Their statistics.
        chosen: The positions to unmask.
        memory: The rule memory afterwards.
        tokens: What was drawn at every position of `where`, if the rule ranks by it.
        predicted: Log-probabilities to draw the chosen positions from, if the rule has a predictor.
        past: This evaluation, for the next step, if the rule compares with it.
        power: The rule draws from each row's marginals to this power; `None` is 1.
        evaluations: How many evaluations each row took, if the rule makes more than one.
    """

    where: Bool[Tensor, "batch length"]
    logits: Float[Tensor, "rows vocab"]
    marginals: Marginals
    chosen: Bool[Tensor, "batch length"]
    memory: Float[Tensor, "batch memory"]
    tokens: Int[Tensor, " rows"] | None = None
    predicted: Float[Tensor, "chosen vocab"] | None = None
    past: Past | None = None
    power: Float[Tensor, " batch"] | None = None
    evaluations: Int[Tensor, " batch"] | None = None

    def bound(self) -> Float[Tensor, " batch"]:
        """`ΣH - max H` over the positions chosen in each row, in nats: the bound on this step's dependence error."""
        h = spread(self.marginals.entropy.double(), self.where, 0.0).masked_fill(~self.chosen, 0.0)
        h = h.scatter(1, h.argmax(-1, keepdim=True), 0.0)
        return h.cumsum(-1)[:, -1]  # sequential, so that padding changes no bit


class Sampler:
    """A denoiser and a rule with the settings of the draw. Stateless: one object serves any number of batches.

    Args:
        denoiser: The model (see `Denoiser`).
        rule: What to unmask when (see `Rule`).
        top_k: Keep the `k` most probable tokens when drawing. Planning never sees it.
        top_p: Keep the smallest set of tokens with this mass when drawing. Planning never sees it.
        forbidden: Token ids that must not appear; removed before planning and drawing alike. The mask token always is.
        last: Tokens that go after the others (see `View.measured`); not for rules that are blind or evaluate ahead.

    Raises:
        ValueError: If a setting is out of range, a token id outside the vocabulary, or `last` does not fit the rule.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rule: Rule,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        forbidden: Iterable[int] = (),
        last: Iterable[int] = (),
    ) -> None:
        check_denoiser(denoiser)
        check_draw(1.0, top_k, top_p)
        self.last = tuple(sorted(set(last)))
        if self.last and (rule.blind or rule.speculates):
            raise ValueError(f"{rule} cannot keep tokens for last: it chooses before it knows what is probable")
        banned = sorted({operator.index(token) for token in forbidden} | {denoiser.mask_id})
        outside = [token for token in banned if not 0 <= token < denoiser.vocab_size]
        if outside:
            raise ValueError(f"forbidden tokens {outside} are outside the vocabulary 0..{denoiser.vocab_size - 1}")
        if len(banned) == denoiser.vocab_size:
            raise ValueError("every token of the vocabulary is forbidden")
        self.denoiser, self.rule = denoiser, rule
        self.top_k, self.top_p, self.forbidden = top_k, top_p, tuple(banned)

    def start(
        self,
        x: Tokens,
        *,
        seed: int | None = None,
        streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
        temperature: float | Float[Tensor, " batch"] = 1.0,
        blocks: int | Int[Tensor, "batch length"] | None = None,
    ) -> State:
        """Prepares a batch; see `sample` for the arguments."""
        x, valid = as_batch(x, self.denoiser)
        batch, device = len(x), x.device
        ids = stream_ids(seed, streams, batch, device)
        check_draw(temperature, None, None)
        tau = torch.as_tensor(temperature, dtype=torch.float64, device=device)
        if tau.ndim > 1 or (tau.ndim == 1 and len(tau) != batch):
            raise ValueError(f"temperature is one number or one per sequence ({batch}), got {tuple(tau.shape)}")
        pending = (x == self.denoiser.mask_id) & valid
        if blocks is None:
            block = torch.zeros_like(x)
        elif isinstance(blocks, Tensor):
            if blocks.shape != x.shape or blocks.dtype.is_floating_point:
                raise ValueError(f"block numbers must be integers of shape {tuple(x.shape)}, got {tuple(blocks.shape)}")
            block = blocks.to(device=device, dtype=torch.int64)
        else:
            block = windows(pending, blocks)
        position = torch.arange(x.shape[1], device=device)
        return State(
            x=x,
            valid=valid,
            pending=pending,
            block=block,
            streams=ids,
            token_noise=uniforms(ids.unsqueeze(-1), position, Purpose.TOKEN),
            order_noise=uniforms(ids.unsqueeze(-1), position, Purpose.ORDER),
            memory=self.rule.start(pending.sum(-1)),
            temperature=tau.expand(batch),
            nfe=torch.zeros(batch, dtype=torch.int64, device=device),
            evaluations=torch.zeros(batch, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def plan(
        self,
        query: Query,
        noise: Float[Tensor, "batch length"],
        memory: Float[Tensor, "batch memory"],
        past: Past | None = None,
    ) -> Plan:
        """Evaluates the denoiser once and lets the rule choose among `query.where`.

        A blind rule, such as a first-hitting sampler's, chooses first, and only what it chose is evaluated.

        Raises:
            LogitsError: If a candidate's logits are no distribution; it names the row, sequence and position.
            ValueError: If the logits have the wrong shape or dtype.
            RuleError: If the rule breaks its contract.
        """
        plan = self._plan(query, noise, memory, past)
        self._check(query if plan.where is query.where else replace(query, where=plan.where), plan.marginals)
        self.rule.check(plan.chosen, query.where)
        return plan

    def _plan(self, query: Query, noise: Tensor, memory: Tensor, past: Past | None) -> Plan:
        """`plan` without checks of logits and rule, which would wait for the device."""
        masked = (query.x == self.denoiser.mask_id) & query.valid
        view = View.blank(query.where, noise, memory, masked, query.valid & ~masked)
        if self.rule.blind:
            chosen, memory = self.rule.choose(view)
            query = replace(query, where=chosen, index=None)
            logits, stats = self._evaluate(query)
            return Plan(chosen, logits, stats, chosen, memory)
        logits, stats = self._evaluate(query)
        view = view.measured(stats, self.last)
        if not self.rule.history:
            chosen, memory = self.rule.choose(view)
            return Plan(query.where, logits, stats, chosen, memory)
        log_p = forbid(logits.to(stats.log_norm.dtype), self.forbidden) - stats.log_norm.unsqueeze(-1)
        count = masked.sum(-1)
        now = Past.after(past, query.sequence, query.where, log_p, count, query.time, self.rule.history)
        chosen, memory = self.rule.choose(replace(view, drift=now.drifts.amax(-1)))
        predicted = None
        if self.rule.predictor is not None:
            rows = log_p[chosen[query.where]]
            predicted = self.rule.predictor.predict(rows, chosen, noise, count, query.time, past)
        return Plan(query.where, logits, stats, chosen, memory, predicted=predicted, past=now)

    def _plan_scored(
        self, query: Query, noise: Tensor, memory: Tensor, token_noise: Tensor, fresh: Tensor, temperature: Tensor
    ) -> Plan:
        """`plan` for a rule whose order is a `ScoredOrder`."""
        where, order = query.where, self.rule.order
        assert isinstance(order, ScoredOrder)
        at = (query.x == self.denoiser.mask_id) & query.valid
        masked = at.sum(-1).double() / query.valid.sum(-1)
        power, tokens = order.power(masked), None
        logits, stats = self._evaluate(query, power)
        self._check(query, stats)
        view = View.blank(where, noise, memory, at, query.valid & ~at).measured(stats, self.last)
        if order.sees_draws:
            tokens = self._draw(logits, None, token_noise[where], temperature[where], stats)
            score = spread(log_prob(logits, stats.log_norm, tokens), where, -torch.inf)
        elif stats.log_moment is not None:
            score = spread(stats.log_moment, where, -torch.inf)
        else:
            score = order.score(view)
        chosen, memory = self.rule.choose(view, Scored(score, fresh, masked))
        return Plan(where, logits, stats, chosen, memory, tokens, power=power)

    def _draw(
        self,
        logits: Tensor,
        rows: Tensor | None,
        uniform: Tensor,
        temperature: Tensor,
        stats: Marginals | None = None,
    ) -> Tensor:
        return draw_rows(logits, rows, uniform, temperature, self.top_k, self.top_p, self.forbidden, stats)

    def _evaluate(self, query: Query, power: Tensor | None = None) -> tuple[Tensor, Marginals]:
        """Logits of `query.where`, and their statistics without the forbidden tokens, not checked."""
        logits = self._logits(query)
        if power is not None:
            power = power.unsqueeze(-1).expand_as(query.where).flatten()[query.rows]
        return logits, marginals(logits, self.forbidden, power, check=False)

    def _logits(self, query: Query) -> Tensor:
        logits = self.denoiser(query)
        expected = (len(query.rows), self.denoiser.vocab_size)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"the denoiser returned a {type(logits).__name__}, expected a tensor of float logits {expected}"
            )
        if tuple(logits.shape) != expected or not logits.dtype.is_floating_point:
            raise ValueError(
                f"the denoiser returned {logits.dtype} {tuple(logits.shape)}, expected float logits {expected}: one row"
                " per position asked for, one column per token id"
            )
        return logits

    def _statistics(self, query: Query, logits: Tensor) -> Marginals:
        stats = marginals(logits, self.forbidden, check=False)
        self._check(query, stats)
        return stats

    def _check(self, query: Query, stats: Marginals) -> None:
        try:
            check_marginals(stats)
        except LogitsError as error:
            row, position = query.where.nonzero()[error.row].tolist()
            place = f" (sequence {int(query.sequence[row])}, position {position})"
            raise LogitsError(error.row, error.reason, place) from None

    @torch.no_grad()
    def step(self, state: State, *, candidates: int = 0) -> tuple[State, StepInfo]:
        """Evaluates the denoiser once, for the unfinished sequences, and unmasks what the rule chooses.

        A state without pending positions comes back unchanged, with no forward pass. With `candidates`, the information
        also has so many of the most probable tokens of each position unmasked.
        """
        masks, device = HostMasks.of(state), state.x.device
        alive = masks.pending.any(-1).nonzero().squeeze(-1)
        if not len(alive):
            return state, StepInfo.empty(state.x)
        live = alive.to(device, non_blocking=True)
        if self.rule.speculates:
            return advance(self, state, live, candidates)
        every = len(alive) == len(state.x)

        def rows(tensor: Tensor) -> Tensor:
            return tensor if every else tensor[live]

        x, pending, valid = rows(state.x), rows(state.pending), rows(state.valid)
        open_now = open_block(masks.pending[alive], masks.block[alive])
        candidate, index = open_now.to(device, non_blocking=True), where_true(open_now, device)
        noise = rows(state.order_noise)
        time = self._time(noise, candidate, pending, valid)
        query, temperature = Query(x, candidate, valid, live, time, index), rows(state.temperature)
        token_noise = rows(state.token_noise)
        if isinstance(self.rule.order, ScoredOrder) or self.rule.tests:
            # Every candidate is ranked anew in every step, perhaps drawn anew: the visit is the evaluation.
            visits, streams = rows(state.nfe).unsqueeze(-1), rows(state.streams).unsqueeze(-1)
            position = torch.arange(x.shape[1], device=device)
            again, fresh = (uniforms(streams, position, use, visits) for use in (Purpose.TOKEN, Purpose.ORDER))
            each = temperature.unsqueeze(-1).expand_as(x)
            if self.rule.tests:
                plan = Plan(**tested(self, query, noise, rows(state.memory), again, each))
            else:
                plan = self._plan_scored(query, noise, rows(state.memory), again, fresh, each)
            if plan.power is not None:
                temperature = temperature / plan.power
        else:
            plan = self._plan(query, noise, rows(state.memory), state.past and state.past.of(live))
        chosen = plan.chosen
        assert plan.marginals.top is not None
        taken, fine = to_host(chosen, plan.marginals.top.isfinite().all())
        if not fine:
            self._check(replace(query, where=plan.where), plan.marginals)
        self.rule.check(taken, open_now)
        at = where_true(taken, device)
        # Which rows of the logits were chosen: all of them, if nothing else was evaluated.
        every_row = plan.where is chosen
        picked = torch.arange(len(at), device=device) if every_row else where_true(taken[open_now], device)
        uniform, tau = token_noise.flatten()[at], temperature[at.div(x.shape[1], rounding_mode="floor")]
        if plan.tokens is not None:
            tokens = plan.tokens[picked]
        elif plan.predicted is not None:
            tokens = self._draw(plan.predicted, None, uniform, tau)
        else:
            tokens = self._draw(plan.logits, picked, uniform, tau, plan.marginals)
        info = StepInfo(
            sequence=live,
            candidate=candidate,
            chosen=chosen,
            tokens=tokens,
            log_prob=plan.logits[picked, tokens].to(plan.marginals.log_norm.dtype) - plan.marginals.log_norm[picked],
            entropy=plan.marginals.entropy[picked],
            bound=plan.bound(),
            forward_passes=1 if plan.evaluations is None else int(plan.evaluations.max()),
            evaluations=torch.ones_like(live) if plan.evaluations is None else plan.evaluations,
        )
        if candidates:
            top = most_probable(plan.logits[picked], plan.marginals.log_norm[picked], candidates, self.forbidden)
            info = replace(info, top_tokens=top[0], top_log_prob=top[1])
        x, pending = x.flatten().index_copy(0, at, tokens).view_as(x), pending & ~chosen
        left = masks.pending.index_copy(0, alive, masks.pending[alive] & ~taken)
        if every:
            counts = {"nfe": state.nfe + info.evaluations, "evaluations": state.evaluations + info.evaluations}
            new = replace(state, x=x, pending=pending, memory=plan.memory, past=plan.past, **counts)
            return HostMasks(left, masks.block).note(new), info
        new = replace(
            state,
            x=state.x.index_copy(0, live, x),
            pending=state.pending.index_copy(0, live, pending),
            memory=state.memory.index_copy(0, live, plan.memory),
            nfe=state.nfe.index_add(0, live, info.evaluations),
            evaluations=state.evaluations.index_add(0, live, info.evaluations),
            past=plan.past,
        )
        return HostMasks(left, masks.block).note(new), info

    def _time(self, noise: Tensor, candidate: Tensor, pending: Tensor, valid: Tensor) -> Float[Tensor, " batch"] | None:
        if not getattr(self.denoiser, "wants_time", False):
            return None
        if self.rule.clock is None:
            raise ValueError(
                "this denoiser wants to know the time, and the rule has no clock: add one, as in"
                " Rule(order, budget, MaskedFraction(schedule)), or use first_hitting() or ancestral(steps)"
            )
        return self.rule.clock.time(noise, candidate, pending.sum(-1).double() / valid.sum(-1))

    def run(
        self,
        state: State,
        *,
        max_steps: int | None = None,
        trace: bool = False,
        candidates: int = 0,
        on_step: Callable[[State, StepInfo], None] | None = None,
        settle: Callable[[State, StepInfo], State] | None = None,
    ) -> Result:
        """Steps until every sequence is finished, or `max_steps` are made; see `sample`.

        After each step `settle` may take positions out of `State.pending`: they stay masked, and are not evaluated for.
        """
        if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 0):
            raise ValueError(f"max_steps must be an integer >= 0 or None, got {max_steps!r}")
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 0:
            raise ValueError(f"candidates must be an integer >= 0, got {candidates!r}")
        x0, passes, infos = state.x, 0, []
        bounds: list[tuple[Tensor, Tensor]] = []
        while max_steps is None or passes < max_steps:
            state, info = self.step(state, candidates=candidates)
            if not info.forward_passes:
                break
            state = state if settle is None else settle(state, info)
            passes += info.forward_passes
            bounds.append((info.sequence, info.bound))
            if trace:
                infos.append(info)
            if on_step is not None:
                on_step(state, info)
        return Result.of(state, x0, passes, bounds, infos if trace else None)


def sample(
    denoiser: Denoiser,
    x: Tokens,
    rule: Rule,
    *,
    seed: int | None = None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
    temperature: float | Float[Tensor, " batch"] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: Iterable[int] = (),
    blocks: int | Int[Tensor, "batch length"] | None = None,
    max_steps: int | None = None,
    trace: bool = False,
    candidates: int = 0,
    on_step: Callable[[State, StepInfo], None] | None = None,
) -> Result:
    """Fills in the masks of a batch.

    A sequence's tokens and NFE depend on its own tokens, stream and settings only, never on the batch it is in.

    Args:
        denoiser: The model.
        x: Token ids with the mask token where something is to be drawn; all other tokens are kept. A matrix, one
            sequence, or a list of sequences of different lengths.
        rule: What to unmask when.
        seed: Gives row `r` the stream `derive(seed, r)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence.
        temperature: Of the draw; 0 takes the argmax. Planning always uses the denoiser's own distribution. One number,
            or one per sequence.
        top_k: Draw among the `k` most probable tokens.
        top_p: Draw among the fewest tokens that hold this mass.
        forbidden: Token ids that must not appear.
        blocks: Window length for semi-autoregressive sampling, counted from each sequence's first mask; or the block
            number of every position.
        max_steps: Stop after so many forward passes; what is still masked stays masked, and the result says so.
        trace: Keep what was unmasked when.
        candidates: In the steps' information and the trace, also keep so many of the most probable tokens of each
            position unmasked.
        on_step: Called with the new state and the step's information.

    Returns:
        Tokens, NFE per sequence, forward passes and the realised dependence bound. Nothing to unmask: NFE 0.

    Raises:
        ValueError: If an argument is out of range, or token ids are outside the vocabulary.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.
    """
    sampler = Sampler(denoiser, rule, top_k=top_k, top_p=top_p, forbidden=forbidden)
    state = sampler.start(x, seed=seed, streams=streams, temperature=temperature, blocks=blocks)
    return sampler.run(state, max_steps=max_steps, trace=trace, candidates=candidates, on_step=on_step)

"""Rules that mask again, overwrite or correct: what the loop does for them, their laws, and that they end.

Pearson's tests draw 20,000 sequences on at most 243 outcomes at a threshold of 1e-6: with some 40 of them a correct
sampler fails one run in 25,000, and a law 0.05 away in total variation is caught with probability > 0.99.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import (
    All,
    Confidence,
    Entropy,
    EntropyBound,
    FullDenoiser,
    LeftToRight,
    Noisy,
    One,
    Rule,
    Sampler,
    Speculative,
    Steps,
    Uniform,
    derive,
    sample,
)
from unmask.draws.streams import Purpose, uniforms
from unmask.oracles import PerturbedDenoiser, TableDenoiser, exact_law, random_hmm, random_table
from unmask.rules import Editing, Gibbs, PathPlanning, Remasking, Wino, ancestral
from unmask.rules.remasking import STRATEGIES
from unmask.sampling.conversation import Ask, LawKind, Move
from unmask.sampling.queue import stream

N = 20_000
HMM, MASK = random_hmm(3, 3, 4), 3


@dataclass(frozen=True)
class Plain:
    """What every rule says of itself."""

    asks_once: bool = False
    waits: bool = False
    law: LawKind = LawKind.NONE
    no_law: str = "it is made up for a test"

    def start(self, masked):
        return torch.zeros(len(masked), 1, dtype=torch.float64)


@dataclass(frozen=True)
class Script(Plain):
    """Turn 0 writes all; 1 rests; 2 masks position 0 again without asking; 3 writes it; 4 overwrites 1; 5 rests."""

    def turn(self, seen):
        number = int(seen.numbers[0, 0])
        nothing, memory = torch.zeros_like(seen.candidate), seen.numbers + 1
        first = nothing.index_fill(1, torch.tensor(number // 4), True) & seen.valid
        if number in (0, 3):
            answer = yield Ask(seen.candidate)
            return Move(seen.candidate, memory, answer, more=torch.ones_like(first[:, 0]))
        if number == 4:
            x = seen.x.masked_fill(first, seen.mask_id)
            answer = yield Ask(first, x=x, row=torch.arange(len(x)))
            tokens = torch.full_like(answer.index, 2)
            rows = torch.arange(len(answer.index))
            return Move(first, memory, answer, rows=rows, tokens=tokens, more=torch.ones_like(first[:, 0]))
        erase = first if number == 2 else None
        return Move(nothing, memory, None, erase=erase, more=torch.full_like(first[:, 0], number < 5))


def test_a_turn_may_rest_mask_again_without_asking_and_overwrite():
    x = torch.tensor([[MASK, MASK, MASK]])
    result = sample(HMM, x, Script(), seed=3, trace=True)
    assert result.nfe.tolist() == [3]
    assert result.forward_passes == 3
    assert result.masks_left.tolist() == [0]
    assert len(result.bounds[0]) == 6  # of every turn
    assert [(event.step, event.position) for event in result.trace()] == [(1, 0), (1, 1), (1, 2), (4, 0), (5, 1)]
    assert result.trace()[-1].token == result.tokens[0, 1] == 2
    assert result.erasures() == [(3, 0)]
    assert result.trace_json()["erased"] == [(3, 0)]
    shown = [line.strip().split("   ")[0].split() for line in result.render().splitlines()]
    last = str(int(result.tokens[0, 2]))
    assert [row[1] for row in shown][3] == "_"
    assert [row[3] for row in shown] == ["_", f"[{last}]", last, last, last, last]
    assert shown[5][2] == "[2]"
    stopped = sample(HMM, x, Script(), seed=3, trace=True, max_steps=1)
    assert stopped.forward_passes == 1
    ((_, queued),) = stream(Sampler(HMM, Script()), x, 2, streams=[derive(3, 0)])
    assert queued.sequences == result.sequences
    assert queued.bounds == result.bounds
    mixed = sample(HMM, [[MASK] * 3, [MASK] * 4], [Script(), Rule(Entropy(), One())], streams=[derive(3, 0), 1])
    assert mixed.sequences[0] == result.sequences[0]
    assert mixed.nfe.tolist() == [3, 4]


def test_a_token_drawn_again_has_a_uniform_that_no_evaluation_has():
    """The uniform of the first visit was that of the evaluation number 1, which draws drafts."""
    state = Sampler(HMM, Rule(Entropy(), One())).start(torch.full((1, 4), MASK), seed=0)
    again = state.mask(torch.tensor([[True, False, False, False]]))
    fresh = uniforms(state.streams.unsqueeze(-1), torch.arange(4), Purpose.TOKEN, 1)
    assert float(again.token_noise[0, 0]) != float(fresh[0, 0])


RULES = [
    Remasking(1),
    Remasking(4, 0.3),
    Remasking(5, 0.5, "rescale"),
    Remasking(8, 0.1, "loop"),
    PathPlanning(3),
    PathPlanning(7, 2.0),
    PathPlanning(2, 0.0),
    Wino(0.4, 0.5),
    Wino(0.0, 0.95),
    Editing(0.5, 0.4),
    Editing(0.0, 0.6, 1),
    Gibbs(Rule(Entropy(), EntropyBound(1.0)), 0.6),
    Gibbs(Rule(Noisy(), All()), 1.0),
    Gibbs(Rule(Uniform(), EntropyBound(0.5)), 0.4),
]


def agree(denoiser, rule, x, **draw) -> None:
    law = exact_law(denoiser, rule, x, **draw)
    assert float(law.log_q.exp().sum()) + law.off_support == pytest.approx(1)
    parts = [
        sample(denoiser, x.expand(2000, -1), rule, streams=[derive(1, row) for row in range(i, i + 2000)], **draw)
        for i in range(0, N, 2000)
    ]
    assert law.pvalue(torch.cat([part.tokens for part in parts])) > 1e-6
    for exact, drawn in ((law.nfe_mean, "nfe"), (law.evaluations_mean, "evaluations")):
        counts = torch.cat([getattr(part, drawn) for part in parts]).double()
        assert abs(float(counts.mean()) - exact) < 5 * float(counts.std()) / N**0.5 + 1e-9


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_loop_draws_from_the_exact_law(rule):
    agree(random_table(3, 4, 11), rule, torch.full((4,), 3))


@pytest.mark.parametrize(
    ("rule", "draw"),
    [
        (Remasking(4, 0.3), {"temperature": 0.6, "top_k": 2}),
        (PathPlanning(3), {"blocks": 2}),
        (PathPlanning(3), {"temperature": 1.5, "forbidden": [1]}),
        (Wino(0.4, 0.5), {"blocks": 3, "temperature": 0.7}),
        (Editing(0.5, 0.4), {"blocks": 2}),
        (Gibbs(Rule(Entropy(), EntropyBound(1.0))), {"blocks": 2, "temperature": 0.7}),
        (Gibbs(Rule(Entropy(), EntropyBound(1.0))), {"top_p": 0.8}),
    ],
    ids=repr,
)
def test_it_does_so_with_a_pinned_token_and_settings_of_the_draw(rule, draw):
    agree(random_table(3, 5, 6), rule, torch.tensor([3, 2, 3, 3, 3]), **draw)


@pytest.mark.parametrize("rule", [Remasking(4, 0.3), PathPlanning(3), Wino(0.4, 0.5), Gibbs(Rule(Entropy(), All()))])
def test_it_does_so_with_a_wrong_model(rule):
    agree(PerturbedDenoiser(random_table(3, 4, 5), 0.5), rule, torch.full((4,), 3))


@given(st.integers(1, 12), st.floats(0, 1), st.sampled_from(STRATEGIES[:2]))
def test_remasking_keeps_the_share_of_tokens_on_schedule(steps, rate, strategy):
    rule = Remasking(steps, rate, strategy)
    for done in range(steps):
        before, after, _ = rule.shares(done)
        written, again = rule.rates(done)
        assert before * (1 - again) + (1 - before) * written == pytest.approx(after)
        assert 0 <= written <= 1
    assert rule.rates(steps - 1) == (1.0, 0.0)


def test_a_loop_holds_its_share():
    rule = Remasking(100, 0.02, "loop")
    held = [rule.shares(done) for done in range(100)]
    assert max(before for before, _, _ in held[:45]) < 0.9 <= held[45][0] + 1e-9
    for done in range(47, 94):
        before, after, again = held[done]
        assert before == after == 0.9
        assert again == 0.02
        written, again = rule.rates(done)
        assert before * (1 - again) + (1 - before) * written == pytest.approx(0.9)
    with pytest.raises(ValueError, match="hold"):
        Remasking(10, 0.5, "loop")


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_remasking_at_rate_0_is_ancestral_sampling(steps):
    """Two computations of one law: a table of all states here, sums over sets of positions there."""
    oracle, x = random_table(3, 4, 2), torch.full((4,), 3)
    mine, known = exact_law(oracle, Remasking(steps, 0.0), x), exact_law(oracle, ancestral(steps), x)
    assert mine.log_q == pytest.approx(known.log_q)
    assert mine.nfe_mean == pytest.approx(known.nfe_mean)


def test_remasking_keeps_the_law_on_a_fine_grid_and_costs_evaluations():
    oracle, x = random_table(3, 3, 2), torch.full((3,), 3)
    laws = [exact_law(oracle, Remasking(steps, 0.3), x) for steps in (3, 12, 96)]
    assert laws[0].kl > laws[1].kl > laws[2].kl
    assert laws[2].kl < 0.02 * exact_law(oracle, Rule(Entropy(), All()), x).kl
    assert laws[1].nfe_mean > exact_law(oracle, Remasking(12, 0.0), x).nfe_mean + 1


def test_a_correction_leaves_the_law_alone_and_wrong_rates_are_caught():
    """20,000 sequences against the *data*: right at a threshold of 1e-6; a rule that picks by content at 1e-12."""
    oracle, x = random_table(3, 4, 11), torch.full((4,), 3)
    truth = exact_law(oracle, Rule(Entropy(), One()), x)
    assert truth.kl < 1e-12
    right = Gibbs(Rule(Entropy(), One()), 2.0)

    class Wrong(Gibbs):
        """Draws the leftmost position again that has token 0, as if that were the likely mistake."""

        def pick(self, seen, stands, begun, count):
            suspect = stands & (seen.x == 0)
            suspect = torch.where(suspect.any(-1, keepdim=True), suspect, stands)
            return suspect & (suspect.cumsum(-1) == 1)

    assert exact_law(oracle, right, x).kl < 1e-12
    assert truth.pvalue(sample(oracle, x.expand(N, -1), right, seed=2).tokens) > 1e-6
    assert truth.pvalue(sample(oracle, x.expand(N, -1), Wrong(right.rule, 2.0), seed=2).tokens) < 1e-12


def test_corrections_never_take_a_law_further_away():
    for seed in range(3):
        oracle, x = random_table(3, 4, seed), torch.full((4,), 3)
        base = Rule(Entropy(), All())
        errors = [exact_law(oracle, base, x).kl]
        errors += [exact_law(oracle, Gibbs(base, sweeps), x).kl for sweeps in (0.25, 0.5, 0.75, 1.0, 2.0)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.1 * errors[0]


def test_which_positions_are_corrected():
    for sweeps, n, expected in ((1.0, 4, [0, 1, 2, 3]), (0.5, 5, [0, 2, 4]), (2.0, 2, [0, 1, 0, 1]), (0.1, 5, [0])):
        rule = Gibbs(Rule(Entropy(), All()), sweeps)
        visits = torch.arange(rule.visits(n)).double()
        assert rule.position(visits, torch.tensor(n)).tolist() == expected
        run = sample(HMM, torch.full((1, n), MASK), rule, seed=0, trace=True)
        assert [at for _, at in run.erasures()] == expected
        assert run.nfe.tolist() == [1 + len(expected)]
    alone = sample(HMM, torch.tensor([[0, MASK, 1]]), Gibbs(Rule(Entropy(), All()), 3.0), seed=0, trace=True)
    assert alone.erasures() == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize(
    "rule",
    [
        Gibbs(Rule(Entropy(), One())),
        Remasking(6, 0.3),
        Remasking(6, 0.3, "confidence"),
        PathPlanning(5),
        Wino(0.3, 0.9),
        Editing(0.2, 0.3),
    ],
    ids=repr,
)
def test_masks_that_are_let_go_of_stay_and_end_nothing_early(rule):
    """As after the end of a text; a sequence takes as many evaluations as alone."""

    def settle(state, info=None):
        return replace(state, pending=state.pending & (torch.arange(8) < 5))

    sampler, x = Sampler(HMM, rule), torch.full((3, 8), MASK)
    x[1, :4], x[2, 5:] = 1, 2
    together = sampler.run(settle(sampler.start(x, streams=[5, 6, 7], blocks=4)), settle=settle)
    assert bool((together.tokens[:2, 5:] == MASK).all())
    assert not bool((together.tokens[:, :5] == MASK).any())
    for row in range(3):
        alone = sampler.run(settle(sampler.start(x[row : row + 1], streams=[5 + row], blocks=4)), settle=settle)
        assert alone.sequences[0] == together.sequences[row]
        assert alone.nfe[0] == together.nfe[row]
    if isinstance(rule, Gibbs):
        assert together.nfe.tolist()[2] == 10


def random_logits(seed: int, sharpness: float) -> FullDenoiser:
    """A model whose logits are anything, a function of the whole sequence."""

    def logits(x):
        rows = []
        for row in x.tolist():
            generator = torch.Generator().manual_seed(derive(seed, row) % 2**62)
            rows.append(torch.randn(len(row), 5, generator=generator, dtype=torch.float64) * sharpness)
        return torch.stack(rows)

    return FullDenoiser(logits, 5, 4)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.floats(0.1, 8), st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, 4]))
def test_all_of_them_end_within_what_they_promise(seed, sharpness, one, other, blocks):
    model, x, n = random_logits(seed, sharpness), torch.full((2, 9), 4), 9
    x[1, 2:7] = 1
    masks, parts = torch.tensor([n, 4]), 1 if blocks is None else 3
    for rule, most in (
        (Wino(one, other), masks),
        (Editing(one, other, 3), masks + 3 * parts),
        (PathPlanning(5, 3 * one), torch.full((2,), 5 * parts)),
        (Remasking(6, one), torch.full((2,), 6 * parts)),
        (Remasking(6, one, "confidence"), torch.full((2,), 6 * parts)),
        (Gibbs(Rule(Confidence(), EntropyBound(one)), 1.5), masks + (1.5 * masks).ceil()),
    ):
        run = sample(model, x, rule, seed=seed, temperature=other, blocks=blocks, trace=True)
        assert bool((run.nfe <= most).all()), rule
        assert bool((run.tokens != 4).all())
        assert bool((run.tokens[x != 4] == x[x != 4]).all())


def test_wino_takes_back_what_the_rest_does_not_support():
    """The first two are nearly always equal, and drawn together; the others depend on the first and come after."""
    first = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
    same, alike = (torch.full((3, 3), p, dtype=torch.float64) for p in (0.05, 0.1))
    same, alike = same + 0.85 * torch.eye(3).double(), alike + 0.7 * torch.eye(3).double()
    oracle = TableDenoiser(torch.einsum("a,ab,ac,ad->abcd", first, same, alike, alike))
    x = torch.full((4,), 3)

    def equal(rule) -> float:
        law = exact_law(oracle, rule, x)
        return float(law.log_q.exp()[law.points[:, 0] == law.points[:, 1]].sum())

    assert equal(Rule(Entropy(), One())) == pytest.approx(0.9)
    assert equal(Wino(0.385, 0.0)) < 0.35
    assert equal(Wino(0.385, 0.9)) > 0.7
    run = sample(oracle, x.expand(400, -1), Wino(0.385, 0.9), seed=0, trace=True)
    assert any(run.erasures(row) for row in range(400))
    assert not any(sample(oracle, x, Wino(0.385, 0.0), seed=0, trace=True).erasures())


def test_confidence_is_remembered_and_its_law_refused():
    rule = Remasking(8, 0.0, "confidence")
    with pytest.raises(ValueError, match="as many states as paths"):
        exact_law(random_table(3, 3, 0), rule, torch.full((3,), 3))
    run = sample(HMM, torch.full((200, 8), MASK), rule, seed=0, trace=True)
    assert bool(run.finished.all())
    assert sum(len(run.erasures(row)) for row in range(200)) > 100
    with pytest.raises(ValueError, match="visible token"):
        exact_law(random_table(3, 3, 0), Editing(shadows=False), torch.full((3,), 3))


def test_editing_asks_a_trained_editor_about_visible_tokens():
    """It says 2 wherever it sees a 1, and 1 at masks: everything is written as 1 and edited to 2."""

    def logits(x):
        sure = torch.where(x == 1, 2, 1)
        return torch.nn.functional.one_hot(sure, 4).double() * 9

    model = FullDenoiser(logits, 4, 3)
    run = sample(model, torch.full((1, 5), 3), Editing(0.9, 0.9, shadows=False), seed=0, trace=True)
    assert run.sequences == [[2] * 5] or run.sequences == [[1] * 5]
    assert run.evaluations.tolist() == run.nfe.tolist()
    hidden = sample(model, torch.full((1, 5), 3), Editing(0.9, 0.9), seed=0)
    assert hidden.sequences == [[1] * 5]
    assert hidden.evaluations.tolist() == [1 + 5]


def test_time_is_told_or_refused():
    seen = []

    class Timed:
        vocab_size, mask_id, wants_time = 4, 3, True

        def __call__(self, query):
            seen.append(query.time)
            return torch.zeros(len(query.rows), 4, dtype=torch.float64)

    sample(Timed(), torch.full((1, 4), 3), Remasking(4, 0.2), seed=0)
    assert all(float(time) in (1.0, 0.75, 0.5, 0.25) for time in seen)
    with pytest.raises(ValueError, match="ignores the time"):
        sample(Timed(), torch.full((1, 4), 3), PathPlanning(2), seed=0)


def test_bad_settings_are_refused():
    for build, match in (
        (lambda: Remasking(0), "steps"),
        (lambda: Remasking(3, 1.5), "rate"),
        (lambda: Remasking(3, 0.1, "often"), "unknown strategy"),
        (lambda: Remasking(3, on=0.1, off=0.5), "loop runs"),
        (lambda: PathPlanning(2, math.inf), "eta"),
        (lambda: Wino(1.2), "threshold"),
        (lambda: Editing(rounds=0), "rounds"),
        (lambda: Gibbs(Rule(Entropy(), One()), 0.0), "sweeps"),
        (lambda: Gibbs(Rule(LeftToRight(), Steps(3))), "keeps no count"),
        (lambda: Gibbs(Rule(Entropy(), Speculative(2))), "keeps no count"),
        (lambda: exact_law(random_table(3, 4, 0), Remasking(3), torch.full((4,), 3), blocks=2), "has its own clock"),
    ):
        with pytest.raises(ValueError, match=match):
            build()

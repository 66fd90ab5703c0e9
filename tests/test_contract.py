"""What every named rule keeps to. A new rule is tested by being named: everything here comes from the table of rules.

Pearson's test of the law: 4,000 sequences, 81 outcomes; with some 40 rules, a correct sampler fails one run in 25,000,
and a law 0.1 away in total variation is caught with probability > 0.99.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch

from unmask import FullDenoiser, Sampler, State, sample
from unmask.errors import RuleError
from unmask.integrations.stepwise import advance_block, begin
from unmask.oracles import exact_law, random_hmm, random_table
from unmask.rules.named import FAMILIES, Family, named_rule
from unmask.sampling.conversation import AnyRule
from unmask.sampling.draw import Settings
from unmask.sampling.queue import Job, run_jobs, stream

HMM = random_hmm(3, 3, 4)
MASK = HMM.mask_id


def example(name: str, family: Family) -> AnyRule:
    """The rule with its settings' defaults and examples."""
    needed = {key: setting.example for key, setting in family.settings.items() if setting.default is None}
    assert all(value is not None for value in needed.values()), f"{name}: a setting without default has no example"
    return named_rule(name, **needed).rule


OWN = set(FAMILIES)
PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
    lines = [line for line in block.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(lines) <= 25, "the page promises rules of 25 lines"
    exec(compile(block, str(PAGE), "exec"), globals())  # the page's own rules are in the table from here on

RULES = {name: example(name, family) for name, family in FAMILIES.items()}
for name in set(FAMILIES) - OWN:
    del FAMILIES[name]  # other tests have the table as it is
ROWS = [torch.tensor(row) for row in ([MASK] * 9, [MASK, 1, MASK, MASK, 0, MASK], [2, MASK, MASK, MASK], [0, 1, 2])]

every_rule = pytest.mark.parametrize("name", RULES)


@every_rule
def test_it_has_a_law_which_the_loop_draws_from_or_says_why_not(name):
    rule, oracle, x = RULES[name], random_table(3, 4, 11), torch.full((4,), 3)
    if rule.no_law:
        with pytest.raises(ValueError, match=r".{20}"):
            exact_law(oracle, rule, x)  # pyright: ignore[reportArgumentType]
        return
    law = exact_law(oracle, rule, x)  # pyright: ignore[reportArgumentType]
    assert law.pvalue(sample(oracle, x.expand(4000, -1), rule, seed=3).tokens) > 1e-6


@every_rule
def test_it_keeps_the_prompt_writes_every_mask_and_never_draws_one(name):
    result = sample(HMM, ROWS, RULES[name], seed=1)
    for row, found in zip(ROWS, result.sequences, strict=True):
        assert MASK not in found
        assert all(given in (MASK, token) for given, token in zip(row.tolist(), found, strict=True))
    assert result.nfe[3] == 0
    assert bool((result.nfe[:3] > 0).all())


@every_rule
def test_a_sequence_is_what_it_is_alone_among_its_own_and_among_other_rules(name):
    rule, others = RULES[name], [RULES[other] for other in RULES if other != name]
    alone = [sample(HMM, [row], rule, streams=[7 + i], temperature=0.8, blocks=4) for i, row in enumerate(ROWS)]
    together = sample(HMM, ROWS, rule, streams=[7, 8, 9, 10], temperature=0.8, blocks=4)
    mates = [RULES["entropy-bound"], *others[:3], *others[-2:]]
    mixed = sample(
        HMM,
        [*ROWS, *[torch.full((5 + i,), MASK) for i in range(len(mates))]],
        [rule] * len(ROWS) + mates,
        streams=range(7, 7 + len(ROWS) + len(mates)),
        temperature=[0.8] * len(ROWS) + [0.1 * i for i in range(len(mates))],
        forbidden=[()] * len(ROWS) + [(i % 3,) for i in range(len(mates))],
        top_k=[None] * len(ROWS) + [2] * len(mates),
        blocks=4,
    )
    for i, one in enumerate(alone):
        for found in (together, mixed):
            assert found.sequences[i] == one.sequences[0]
            assert found.nfe[i] == one.nfe[0]
            assert found.evaluations[i] == one.evaluations[0]
            assert found.bounds[i] == one.bounds[0]


@pytest.mark.parametrize("name", sorted(OWN))
def test_it_equals_another_with_the_same_settings_so_that_their_sequences_share_a_batch(name):
    one, other = RULES[name], example(name, FAMILIES[name])
    assert one == other
    assert hash(one) == hash(other)
    assert all(one != RULES[another] for another in OWN - {name})


@every_rule
def test_slots_are_refilled_whatever_others_do(name):
    rows = [*ROWS, *ROWS]
    sampler = Sampler(HMM, RULES[name])
    alone = [sample(HMM, [row], RULES[name], streams=[i]) for i, row in enumerate(rows)]
    for number, result in stream(sampler, rows, 2, streams=range(len(rows))):
        assert result.sequences == alone[number].sequences
        assert result.nfe.tolist() == alone[number].nfe.tolist()
        assert result.bounds == alone[number].bounds
    other = Sampler(HMM, RULES["entropy-bound"])
    jobs = [Job(row, other if i % 3 == 1 else sampler, i) for i, row in enumerate(rows)]
    for number, result in run_jobs(jobs, 3):
        if number % 3 != 1:
            assert result.sequences == alone[number].sequences
            assert result.nfe.tolist() == alone[number].nfe.tolist()


@every_rule
def test_a_state_is_pickled_parted_and_joined_in_the_middle(name):
    sampler = Sampler(HMM, RULES[name])
    whole = sampler.run(sampler.start(ROWS, seed=2))
    state, _ = sampler.step(sampler.start(ROWS, seed=2))
    parts = pickle.loads(pickle.dumps(state)).split()
    again = sampler.run(State.join([parts[2], parts[0]]))
    assert again.sequences[0][:4] == whole.sequences[2]
    assert again.sequences[1] == whole.sequences[0]
    assert again.nfe.tolist() == [int(whole.nfe[2]), int(whole.nfe[0])]


@every_rule
def test_a_loop_that_evaluates_once_is_answered_or_the_rule_refused_by_name(name):
    rule, x = RULES[name], torch.full((2, 6), MASK)
    everywhere = FullDenoiser(lambda t: t.new_zeros(*t.shape, 4).double() + torch.arange(4.0) * 0.3, 4, MASK)
    if not rule.asks_once:
        with pytest.raises(ValueError, match="this loop makes one evaluation"):
            begin(rule, x, 4, MASK, [1, 2])
        return
    state = begin(rule, x, 4, MASK, [1, 2])
    while bool(state.pending.any()):
        logits = everywhere.function(state.x)
        state, _ = advance_block(state, rule, state.x, logits, temperature=1.0)
    assert state.x.tolist() == sample(everywhere, x, rule, streams=[1, 2]).tokens.tolist()


@every_rule
def test_tokens_go_last_or_it_is_refused(name):
    rule = RULES[name]
    if not rule.waits:
        with pytest.raises(ValueError, match="cannot keep tokens for last"):
            Sampler(HMM, rule, last=[0])
        return
    # Position 2 is nearly sure of the token that goes last: without `last` it would be among the first.
    logits = torch.tensor([[0.4, 1.0, 0.2, 0.0], [0.1, 1.0, 0.5, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.3, 1.0, 0.0]])
    model = FullDenoiser(lambda t: logits.double().expand(len(t), -1, -1), 4, MASK)
    sampler = Sampler(model, rule, last=[0])
    result = sampler.run(sampler.start(torch.full((4, 4), MASK), seed=0, temperature=0.0), trace=True)
    for row in range(4):
        steps = {event.position: event.step for event in result.trace(row)}
        assert steps[2] == max(steps.values())


@every_rule
def test_a_block_opens_when_the_one_before_it_is_full(name):
    result = sample(HMM, torch.full((3, 8), MASK), RULES[name], seed=5, blocks=3, trace=True)
    for row in range(3):
        steps: dict[int, int] = {}
        for event in result.trace(row):
            steps[event.position] = max(steps.get(event.position, 0), event.step)
        if name in ("speculative", "lookahead"):  # they may look further than the open block, each block in order
            continue
        for block in (range(3), range(3, 6)):
            after = [steps[i] for i in range(block.stop, 8)]
            assert max(steps[i] for i in block) < min(after)


@every_rule
def test_a_position_masked_by_hand_is_drawn_by_another_uniform(name):
    sampler = Sampler(HMM, RULES[name])
    state = sampler.start(torch.full((1, 6), MASK), seed=5)
    before = state.token_noise.clone()
    again = state.mask(torch.tensor([[True, False, False, True, False, False]]))
    changed = (again.token_noise != before)[0].tolist()
    assert changed == [True, False, False, True, False, False]
    assert MASK not in sampler.run(again).sequences[0]


def test_a_batch_of_all_rules_at_once_shares_its_forward_passes():
    names = list(RULES)
    x = torch.full((len(names), 8), MASK)
    asked = []

    class Counting:
        vocab_size, mask_id = HMM.vocab_size, MASK

        def __call__(self, query):
            asked.append(len(query.x))
            return HMM(query)

    result = sample(Counting(), x, list(RULES.values()), streams=range(len(names)))
    alone = [sample(HMM, x[:1], RULES[name], streams=[i]) for i, name in enumerate(names)]
    for row, one in enumerate(alone):
        assert result.sequences[row] == one.sequences[0]
        assert result.nfe[row] == one.nfe[0]
    assert result.forward_passes == len(asked) == max(one.forward_passes for one in alone)


def test_settings_of_a_sequence_are_its_own():
    rule = RULES["entropy-bound"]
    x = torch.full((4, 6), MASK)
    settings = [
        Settings.of(4, MASK, top_k, None, banned) for top_k, banned in ((None, ()), (1, ()), (None, (0,)), (2, (1,)))
    ]
    sampler = Sampler(HMM, rule)
    together = sampler.run(sampler.start(x, seed=1, settings=settings))
    for row, one in enumerate(settings):
        state = sampler.start(x, seed=1, settings=one).select(torch.tensor([row]))
        assert sampler.run(state).sequences[0] == together.sequences[row]
    assert 0 not in together.sequences[2]
    assert 1 not in together.sequences[3]


class Broken:
    """A rule that breaks its contract in one of several ways."""

    asks_once, waits, law, no_law = True, True, None, "it is broken"

    def __init__(self, how: str) -> None:
        self.how = how

    def __repr__(self) -> str:
        return f"Broken({self.how})"

    def start(self, masked):
        return torch.zeros(len(masked), 0, dtype=torch.float64)

    def turn(self, seen):
        from unmask.sampling.conversation import Ask, Move

        answer = yield Ask(seen.candidate)
        chosen = seen.candidate.clone()
        match self.how:
            case "idle":
                chosen[1] = False
            case "pinned":
                chosen[1, 0] = True
            case "padding":
                answer = yield Ask(torch.ones_like(chosen))
            case "for ever":
                while True:
                    yield Ask(seen.candidate)
            case "shape":
                yield Ask(chosen[:, :2])
            case "no move":
                return None
            case "erase":
                return Move(chosen, seen.memory, answer, erase=~seen.candidate & seen.valid)
        return Move(chosen, seen.memory, answer)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("idle", r"at least one candidate .*sequence 1"),
        ("pinned", r"candidates only .*sequence 1"),
        ("padding", r"a position that does not exist \(sequence 1\)"),
        ("for ever", r"has asked 256 questions and not moved"),
        ("shape", r"asked for positions \(2, 2\) of states \(2, 4\)"),
        ("no move", r"must end its turn with a Move, got None"),
        ("erase", r"sequence 1"),
    ],
)
def test_a_rule_that_breaks_its_contract_is_named_with_the_sequence(how, message):
    x = [torch.full((4,), MASK), torch.tensor([1, MASK, MASK])]
    with pytest.raises(RuleError, match=message) as caught:
        sample(HMM, x, Broken(how), seed=0)  # pyright: ignore[reportArgumentType]
    assert f"Broken({how})" in str(caught.value)

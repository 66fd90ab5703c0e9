"""What is ranked and admitted with lists, against the same with tensors."""

import pytest
import torch
from torch import Tensor

from unmask import Confidence, Entropy, Margin, Rule, TopK
from unmask.draws.categorical import marginals
from unmask.rules.budget import All, Budget, EntropyBound, Steps, Threshold
from unmask.rules.planning import MOST, planned
from unmask.sampling import view as views
from unmask.sampling.conversation import Answer, Ask, Situation
from unmask.sampling.draw import Draw, Settings
from unmask.sampling.host import FEW, any_true
from unmask.sampling.view import dependence_bound


def situation(candidate: Tensor, budget: Budget) -> Situation:
    """The situation of sequences in which nothing but some candidates matters."""
    none = torch.zeros(candidate.shape, dtype=torch.float64)
    whole = torch.zeros(candidate.shape, dtype=torch.int64)
    counts = candidate.sum(-1)
    return Situation(
        x=whole,
        candidate=candidate,
        pending=candidate,
        editable=candidate,
        valid=torch.ones_like(candidate),
        block=whole,
        noise=none,
        token_noise=none,
        memory=budget.start(counts),
        streams=counts,
        nfe=counts,
        draw=Draw.of(torch.ones(len(candidate), dtype=torch.float64), [Settings()]),
        mask_id=0,
        wants_time=False,
        index=candidate.flatten().nonzero().squeeze(-1),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "budget",
    [TopK(1), TopK(3), All(), Threshold(0.5), EntropyBound(0.0), EntropyBound(1.5), EntropyBound(float("inf"))],
    ids=repr,
)
def test_lists_choose_what_tensors_choose(dtype, batch, budget):
    generator = torch.Generator().manual_seed(0)
    for trial in range(12):
        candidate = torch.rand(batch, 9, generator=generator) < 0.6
        candidate[:, trial % 9] = True
        # Rounded, so that positions tie; then the lower one goes first.
        logits = (torch.randn(int(candidate.sum()), 5, generator=generator) * 4).round().to(dtype)
        seen, stats = situation(candidate, budget), marginals(logits)
        index = candidate.flatten().nonzero().squeeze(-1)
        answer = Answer(Ask(candidate), index, logits, stats)
        for order in (Entropy(), Confidence(), Margin()):
            rule = Rule(order, budget)
            chosen, memory = rule.choose(seen.view(answer))
            found = planned(rule, seen, stats)
            assert found is not None
            assert torch.equal(found, chosen)
            assert torch.equal(memory, seen.numbers)  # which is why the rule may keep it as it is


def test_other_parts_are_left_to_tensors():
    candidate = torch.ones(1, 4, dtype=torch.bool)
    stats = marginals(torch.zeros(4, 3))

    class Own(Entropy):
        """A key of its own."""

    for rule in (Rule(Entropy(), Steps(2)), Rule(Own(), TopK(1))):
        assert planned(rule, situation(candidate, rule.budget), stats) is None


def test_many_candidates_are_left_to_tensors():
    candidate = torch.ones(2, MOST // 2 + 1, dtype=torch.bool)
    stats = marginals(torch.zeros(candidate.numel(), 2))
    assert planned(Rule(Entropy(), TopK(1)), situation(candidate, TopK(1)), stats) is None


def test_few_and_many_positions_have_the_same_bounds(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(5, 20, generator=generator) < 0.4
    chosen[2] = False
    entropy = torch.rand(int(chosen.sum()), generator=generator).exp()
    few = dependence_bound(chosen, entropy)
    monkeypatch.setattr(views, "_FEW", 0)
    assert torch.equal(dependence_bound(chosen, entropy), few)


@pytest.mark.parametrize("rows", [3, FEW])
def test_any_true_looks_at_each_row(rows):
    mask = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0)) < 0.2
    assert torch.equal(torch.from_numpy(any_true(mask.numpy())), mask.any(-1))

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unmask import load, sample
from unmask.denoiser import NetworkDenoiser
from unmask.language import LanguageModel
from unmask.models.pretrained.cache import Cached
from unmask.rules import Entropy, EntropyBound, Rule

MASK = 299


def llama(dtype: torch.dtype) -> LanguageModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    network: Any = LlamaForCausalLM(LlamaConfig(vocab_size=MASK + 1, **sizes)).eval()
    return LanguageModel.of(network.to(dtype), mask_id=MASK, end_ids=[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_answers_have_the_same_bits_in_any_batch(dtype):
    model = llama(dtype).batch_invariant()
    rows = [[1] * n + [MASK] * masks for n, masks in ((3, 1), (9, 5), (20, 2), (31, 7), (4, 4))]
    rule = Rule(Entropy(), EntropyBound(3.0))
    together = sample(model, rows, rule, streams=range(5), trace=True)
    for number, row in enumerate(rows):
        alone = sample(model, [row], rule, streams=[number], trace=True)
        assert alone.sequences == [together.sequences[number]]
        assert alone.trace() == together.trace(number)  # probabilities and entropies, bit for bit


def test_each_sequence_is_evaluated_without_the_others_and_without_padding(monkeypatch):
    shapes = []
    evaluate = LanguageModel.evaluate
    monkeypatch.setattr(
        LanguageModel, "evaluate", lambda self, query: shapes.append(tuple(query.x.shape)) or evaluate(self, query)
    )
    model = llama(torch.float32)
    sample(model, [[1, MASK], [1, 2, 3, MASK]], Rule(Entropy(), EntropyBound(0.0)), seed=0)
    assert shapes == [(2, 4)]
    sample(model.batch_invariant(), [[1, MASK], [1, 2, 3, MASK]], Rule(Entropy(), EntropyBound(0.0)), seed=0)
    assert shapes[1:] == [(1, 2), (1, 4)]


def test_a_loaded_model_can_be_batch_invariant_and_a_cache_is_refused():
    plain, same = load("chat"), load("chat", batch_invariant=True)
    assert isinstance(plain, LanguageModel)
    assert isinstance(same, LanguageModel)
    assert (plain.one_by_one, same.one_by_one) == (False, True)
    prompts: list = ["1+2=", "12+35="]
    options: dict = {"rule": "entropy-bound:gamma=0.1", "max_new_tokens": 4}
    assert [one.text for one in same.generate(prompts, **options)] == [
        one.text for one in plain.generate(prompts, **options)
    ]
    with pytest.raises(ValueError, match="does not go with batch_invariant"):
        Cached(llama(torch.float32).batch_invariant(), "dual", 2)


def test_a_denoiser_conditioned_on_time_gets_the_time_of_each_row():
    class Timed(torch.nn.Module):
        def forward(self, x, where, time):
            return time.repeat_interleave(where.sum(-1)).unsqueeze(-1).expand(-1, 3).float()

    from unmask.denoiser import Query

    model = NetworkDenoiser(Timed(), 3, 2, wants_time=True)
    x = torch.tensor([[2, 2], [0, 2]])
    query = Query(x, x == 2, torch.ones(2, 2).bool(), torch.arange(2), torch.tensor([0.25, 0.5]))
    assert torch.equal(model.batch_invariant()(query), model(query))

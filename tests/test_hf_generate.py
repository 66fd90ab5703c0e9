"""`model.generate(..., custom_generate=generate)` on a tiny Llama: the traps of the real call, handled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, set_seed
from transformers.generation import ConfidenceCriteria, MinPLogitsWarper, TemperatureLogitsWarper

from unmask import derive
from unmask.integrations import transformers as hf
from unmask.integrations.transformers import UnmaskOutput
from unmask.language import LanguageModel

VOCAB, EOS, MASK, PAD = 24, 21, 22, 23
EB = "entropy-bound:gamma=0.2"
PROMPTS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5], [3, 3, 3, 3, 3]])


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    config.is_causal = False
    config.mask_token_id = MASK
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(12 if weight.ndim > 1 else 1)
        model.lm_head.weight[EOS] = 0.0  # now and then
    return model


def call(model: Any, ids: torch.Tensor = PROMPTS, **settings: Any) -> Any:
    return model.generate(ids, custom_generate=hf.generate, **{"rule": EB, "max_new_tokens": 12, **settings})


def own(model: Any, prompts: list[list[int]], seed: int, **settings: Any) -> Any:
    streams = [derive(seed, row) for row in range(len(prompts))]
    denoiser = LanguageModel.of(model, None, mask_id=MASK, end_ids=[EOS])
    return denoiser.generate(prompts, rule=EB, streams=streams, batch_size=8, **{"max_new_tokens": 12, **settings})


def test_the_tokens_are_the_loops_own(llama: LlamaForCausalLM):
    out = call(llama, do_sample=True, temperature=0.8, top_k=0, seed=3)
    wanted = own(llama, PROMPTS.tolist(), 3, temperature=0.8)
    assert torch.equal(out[:, :5], PROMPTS)
    for row, one in zip(out[:, 5:].tolist(), wanted, strict=True):
        assert row[: one.new_tokens] == list(one.tokens)
        assert set(row[one.new_tokens :]) <= {PAD}
    assert not bool((out == MASK).any())


def test_settings_of_generate_reach_the_draw(llama: LlamaForCausalLM):
    greedy = call(llama, seed=0)
    assert torch.equal(greedy, call(llama, seed=1))  # do_sample is off by default
    sampled = call(llama, do_sample=True, temperature=1.5, top_k=0, seed=1)
    assert not torch.equal(greedy, sampled)
    assert torch.equal(call(llama, do_sample=True, top_k=1, seed=5), greedy)
    config = GenerationConfig(do_sample=True, temperature=1.5, top_k=0, max_new_tokens=12, pad_token_id=PAD)
    model: Any = llama
    assert torch.equal(
        model.generate(PROMPTS, generation_config=config, custom_generate=hf.generate, rule=EB, seed=1), sampled
    )
    kept = set(
        call(llama, do_sample=True, temperature=3.0, top_k=0, seed=0, suppress_tokens=[1, 2])[:, 5:].flatten().tolist()
    )
    assert kept.isdisjoint({1, 2})
    set_seed(0)
    first = call(llama, do_sample=True, temperature=2.0)
    set_seed(0)
    assert torch.equal(first, call(llama, do_sample=True, temperature=2.0))
    assert not torch.equal(first, call(llama, do_sample=True, temperature=2.0))


def test_padding_on_either_side_changes_no_answer(llama: LlamaForCausalLM):
    prompts = [[1, 2, 3], [9, 8, 7, 6, 5]]
    alone = own(llama, prompts, 7, temperature=1.0)
    for side in ("left", "right"):
        ids, mask = torch.full((2, 5), PAD), torch.zeros(2, 5, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            where = slice(5 - len(prompt), 5) if side == "left" else slice(0, len(prompt))
            ids[row, where], mask[row, where] = torch.tensor(prompt), 1
        out = call(llama, ids, attention_mask=mask, do_sample=True, top_k=0, seed=7)
        assert torch.equal(out[:, :5], ids)
        for row, one in zip(out[:, 5:].tolist(), alone, strict=True):
            assert row[: one.new_tokens] == list(one.tokens)


def test_the_output_says_what_it_cost(llama: LlamaForCausalLM):
    out = call(llama, return_dict_in_generate=True, num_return_sequences=2, do_sample=True, top_k=0, seed=0)
    assert isinstance(out, UnmaskOutput)
    assert out.sequences is not None
    assert out.nfe is not None
    assert out.new_tokens is not None
    assert out.log_probs is not None
    assert out.sequences.shape[0] == 6
    assert torch.equal(out.sequences[0, :5], out.sequences[1, :5])
    assert not torch.equal(out.sequences[0], out.sequences[1])
    assert bool((out.nfe >= 1).all() & (out.new_tokens >= 1).all())
    assert bool((out.log_probs <= 0).all())


def test_blocks_and_a_callback_go_through(llama: LlamaForCausalLM):
    seen: list[int] = []
    call(llama, block_length=4, rule="left-to-right", on_step=lambda _, info: seen.append(int(info.chosen.sum())))
    assert sum(seen) >= 3
    with pytest.raises(ValueError, match="block"):
        call(llama, block_length=5)


def test_calling_again_and_again_adds_nothing_to_the_model(llama: LlamaForCausalLM):
    call(llama)
    hooks = len(llama.base_model._forward_hooks)
    call(llama)
    assert len(llama.base_model._forward_hooks) == hooks == 1
    assert llama(PROMPTS).logits.shape == (3, 5, VOCAB)  # an ordinary call is as before


class Processor(LogitsProcessor):
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "entropybound"}, "unknown rule"),
        ({"num_beams": 2}, "num_beams"),
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor works on the next token"),
        ({"logits_processor": [Processor()]}, "Processor works on the next token"),
        ({"logits_processor": [TemperatureLogitsWarper(0.5)]}, "TemperatureLogitsWarper"),
        ({"do_sample": True, "min_p": 0.1}, r"min_p \(MinPLogitsWarper\) truncates the distribution"),
        ({"do_sample": True, "typical_p": 0.9}, r"typical_p \(TypicalLogitsWarper\) truncates the distribution"),
        ({"do_sample": True, "epsilon_cutoff": 0.1}, "epsilon_cutoff"),
        ({"stopping_criteria": [ConfidenceCriteria(0.5)]}, "ConfidenceCriteria asks for the scores"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"logits_to_keep": 3}, "logits_to_keep is not supported"),
        ({"position_ids": torch.arange(3, 8).expand(3, 5)}, "position_ids other than"),
        ({"output_attentions": True}, "output_attentions"),
        ({"blocklength": 4}, "blocklength"),
        ({"max_new_tokens": 100}, "64"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_name(llama: LlamaForCausalLM, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        call(llama, **settings)


def test_a_cache_with_content_and_a_causal_model_are_refused(llama: LlamaForCausalLM):
    cache = DynamicCache(config=llama.config)
    llama(PROMPTS[:, :2], past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="past_key_values holds a prefix"):
        call(llama, past_key_values=cache)
    llama.config.is_causal = True
    try:
        with pytest.raises(ValueError, match="is_causal = False"):
            call(llama)
    finally:
        llama.config.is_causal = False


def test_a_bias_of_single_tokens_is_adapted_and_one_of_several_refused(llama: LlamaForCausalLM):
    banned = [[token] for token in range(12)]
    free, out = call(llama, seed=1), call(llama, seed=1, bad_words_ids=banned)
    assert bool((free[:, 5:] < 12).any()), "the control: without the ban they come up"
    assert not bool((out[:, 5:] < 12).any())
    biased = call(llama, seed=1, sequence_bias={(7,): 1e4})
    assert biased[:, 5:].unique().tolist() == [7]
    with pytest.raises(ValueError, match="SequenceBiasLogitsProcessor works on the next token"):
        call(llama, sequence_bias={(7, 8): 2.0})


def test_a_processor_that_needs_no_order_says_so(llama: LlamaForCausalLM):
    class Even(LogitsProcessor):
        any_order = True

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            assert input_ids.shape[1] == 17, "it sees the whole sequence"
            return scores.masked_fill(torch.arange(VOCAB) % 2 == 1, -torch.inf)

    out = call(llama, seed=2, do_sample=True, temperature=1.0, logits_processor=[Even()])
    assert bool((out[:, 5:] % 2 == 0).all())
    alone = [call(llama, PROMPTS[row : row + 1], seed=2, logits_processor=[Even()]) for row in range(3)]
    together = call(llama, seed=2, logits_processor=[Even()])
    for row, one in enumerate(alone):
        width = one.shape[1]
        assert together[row, :width].tolist() == one[0].tolist()


def test_a_cut_acts_before_planning_if_it_is_said_to_need_no_order(llama: LlamaForCausalLM):
    cut: Any = MinPLogitsWarper(1.0)
    cut.any_order = True
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 2.0, "rule": "left-to-right", "seed": 4}
    greedy = call(llama, rule="left-to-right")
    assert not torch.equal(call(llama, **options), greedy), "the control: without it something else is drawn"
    assert torch.equal(call(llama, logits_processor=[cut], **options), greedy)


def test_scores_that_are_normalised_change_no_draw(llama: LlamaForCausalLM):
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 2.0, "seed": 4}
    assert torch.equal(call(llama, renormalize_logits=True, **options), call(llama, **options))

"""Masked language models in batches: no answer depends on its company, or on what was asked before; one limit."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

import unmask
from benchmarks.masked_lms import KINDS, MASK, PAGE, RESULTS, VOCAB, Tried, check_limit, table, tiny, try_kind
from benchmarks.pages import between
from unmask.errors import AdapterError
from unmask.language import LanguageModel
from unmask.language.guidance import Guided
from unmask.models.pretrained.limits import longest
from unmask.models.pretrained.masked_lm import HFMaskedDenoiser, MaskedLM
from unmask.models.pretrained.sharing import sharing_of

ONE = unmask.Rule(unmask.Entropy(), unmask.One())
OUTCOMES = {
    "equal lengths": ["big_bird", "convbert", "fnet", "funnel", "nystromformer", "reformer", "yoso"],
    "refused": ["bart", "mbart", "mvp", "mra"],
}
"""What becomes of some classes, by `model_type`; the others are evaluated together, whatever the lengths."""
FEW = ["bert", "modernvbert", "big_bird", "convbert", "fnet", "funnel", "reformer", "yoso", "bart", "mra"]


def check(tried: Tried) -> None:
    """No answer differs, and the outcome is the expected one."""
    expected = [outcome for outcome, kinds in OUTCOMES.items() if tried.kind in kinds]
    assert [tried.outcome] == (expected or ["any lengths"]), tried
    if tried.outcome == "refused":
        assert tried.why.startswith(tried.name)
        assert "\n" not in tried.why
        return
    assert tried.answers == 24
    assert tried.differ == 0, tried
    assert tried.gap < 1e-5  # rounding, in float32


@pytest.mark.parametrize("kind", FEW)
def test_answers_do_not_depend_on_their_batch(kind: str):
    check(try_kind(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_every_class_do_not_depend_on_their_batch(kind: str):
    check(try_kind(kind))


def test_the_page_shows_what_was_found():
    tried = [Tried(**one) for one in json.loads(RESULTS.read_text(encoding="utf-8"))["classes"]]
    for one in tried:
        check(one)
    assert between(PAGE.read_text(encoding="utf-8"), "masked-lms") == table(tried)


def test_likelihoods_do_not_depend_on_their_batch():
    model = LanguageModel.of(tiny("fnet"), mask_id=MASK, end_ids=[])
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, VOCAB, (length,), generator=generator).tolist() for length in (7, 19, 7)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        together = unmask.nelbo(model, rows, strata=4, streams=range(3)).nelbo
    alone = [float(unmask.nelbo(model, [row], strata=4, streams=[at]).nelbo) for at, row in enumerate(rows)]
    assert together.tolist() == pytest.approx(alone, rel=1e-5)


def test_the_user_is_told_once_that_lengths_go_apart():
    model = LanguageModel.of(tiny("convbert"), mask_id=MASK, end_ids=[])
    assert not model.padding_invisible
    assert LanguageModel.of(tiny("bert"), mask_id=MASK, end_ids=[]).padding_invisible
    x = [[5, MASK, 7], [8, MASK, 10, 11]]
    with pytest.warns(UserWarning, match="ConvBertForMaskedLM does not ignore padding"):
        unmask.sample(model, x, ONE, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unmask.sample(model, x, ONE, seed=0)
        unmask.sample(HFMaskedDenoiser(MaskedLM(tiny("convbert"), VOCAB, MASK)), x[:1], ONE, seed=0)


@pytest.mark.parametrize("kind", ["convbert", "big_bird", "nystromformer", "fnet"])
def test_padding_is_seen_by_a_model_in_half_precision(kind: str):
    """Its effect is smaller there than the rounding of a deep network: it is looked for in float32."""
    model = tiny(kind).bfloat16()
    before = {name: (weight, weight.clone()) for name, weight in model.state_dict(keep_vars=True).items()}
    assert not MaskedLM(model, VOCAB, MASK).padding_invisible
    for name, weight in model.state_dict(keep_vars=True).items():
        assert weight is before[name][0]
        assert weight.dtype == before[name][1].dtype
        assert torch.equal(weight, before[name][1])


def test_padding_is_invisible_to_bert_in_half_precision():
    assert MaskedLM(tiny("bert").bfloat16(), VOCAB, MASK).padding_invisible


def test_what_only_shows_in_long_sequences_is_noticed_there():
    """Positions scaled from 48 tokens on: short sequences beside long ones would be scaled with them."""
    factors = {"long_factor": [4.0, 3.0, 2.0, 5.0], "short_factor": [1.0] * 4, "factor": 4.0}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 48, **factors}
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, rope_parameters=rope, intermediate_size=48, **sizes)
    llama = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in llama.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    model = LanguageModel.of(llama, mask_id=MASK, end_ids=[])
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, VOCAB, (length,), generator=generator).tolist() for length in (10, 30, 90)]
    settings: dict[str, Any] = {"rule": "top1-entropy", "max_new_tokens": 6, "temperature": 1.0}
    together = model.generate(prompts[:2], streams=range(2), **settings)
    assert model.padding_invisible
    with pytest.warns(UserWarning, match="LlamaForCausalLM does not ignore padding"):
        longer = model.generate(prompts, streams=range(3), **settings)
    assert not model.padding_invisible
    with pytest.raises(ValueError, match="a cache does not go with rope_type 'longrope'"):
        model.generate(prompts, block_length=6, cache="dual", **settings)
    for at, prompt in enumerate(prompts):
        (alone,) = model.generate([prompt], streams=[at], **settings)
        for other in (longer, together) if at < 2 else (longer,):
            assert other[at].tokens == alone.tokens
            assert other[at].log_probs == pytest.approx(alone.log_probs, abs=1e-4)


def test_lengths_that_happen_to_agree_do_not_speak_for_others():
    """One block of BigBird's sparse attention holds the ends of 100 and of 99 tokens; 20 tokens all see each other."""
    model = LanguageModel.of(tiny("big_bird", block_size=8), mask_id=MASK, end_ids=[])
    generator = torch.Generator().manual_seed(0)
    rows = [[*torch.randint(5, VOCAB, (length,), generator=generator).tolist(), MASK] for length in (99, 98, 19)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.infill(rows[:2], rule="top1-entropy")
        together = model.infill(rows, rule="top1-entropy")
    (alone,) = model.infill(rows[2:], rule="top1-entropy")
    assert together[2].log_probs == pytest.approx(alone.log_probs, abs=1e-5)


def test_a_model_is_the_same_whatever_it_was_asked_before():
    """BigBird gives up its sparse attention for good at the first short sequence (transformers#20031)."""
    big_bird = tiny("big_bird")
    modules = dict(big_bird.named_modules())
    model = LanguageModel.of(big_bird, mask_id=MASK, end_ids=[])
    long, short = [*range(5, 55), *[MASK] * 10], [5, 6, MASK]
    settings: dict[str, Any] = {"rule": "top1-entropy", "temperature": 1.0, "seed": 0}
    before = model.infill([long], **settings)
    model.infill([short], **settings)
    after = model.infill([long], **settings)
    assert [(one.tokens, one.log_probs) for one in after] == [(one.tokens, one.log_probs) for one in before]
    assert dict(big_bird.named_modules()) == modules
    assert {getattr(module, "attention_type", "block_sparse") for module in modules.values()} == {"block_sparse"}


def test_random_numbers_of_a_model_are_the_same_every_time():
    """Reformer hashes with random numbers, into as many buckets as suit its first long sequence (`num_buckets`)."""
    reformer = tiny("reformer")
    assert reformer.config.num_buckets is None
    model = LanguageModel.of(reformer, mask_id=MASK, end_ids=[])
    query = unmask.Query.of(torch.tensor([[*range(5, 55), MASK, MASK]]), MASK)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = model(query)
    model(unmask.Query.of(torch.tensor([[*range(5, 25), MASK]]), MASK))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(model(query), first)
    assert reformer.config.num_buckets is None


def test_trying_a_model_leaves_no_trace():
    model = tiny("roberta").train()
    model.base_model.eval()
    flags = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert longest(model) == 127
    assert sharing_of(model, 0).together == "any"
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_sequences_that_notice_any_company_are_evaluated_one_at_a_time():
    """Nyströmformer's landmarks: an inverse starts from the largest sum in the whole batch, and one length fits."""
    model = LanguageModel.of(tiny("nystromformer", num_landmarks=4, segment_means_seq_len=16), mask_id=MASK, end_ids=[])
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, VOCAB, (4, 16), generator=generator)
    x[:, 3::4] = MASK
    together = model(unmask.Query.of(x, MASK))
    alone = torch.cat([model(unmask.Query.of(row.unsqueeze(0), MASK)) for row in x])
    assert torch.equal(together, alone)
    with pytest.raises(ValueError, match=r"NystromformerForMaskedLM cannot be evaluated on 1 sequence of 9 tokens \("):
        unmask.sample(model, x[:1, :9], ONE, seed=0)


def test_models_that_cannot_unmask_are_refused_by_name():
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    for model, message in (
        (mamba, "MambaForCausalLM sees only the tokens to its left"),
        (tiny("mra"), "MraForMaskedLM sees no token but the one it is asked about"),
    ):
        made = LanguageModel.of(model, mask_id=MASK, end_ids=[])
        with pytest.raises(ValueError, match=message):
            made.infill([[5, 6, MASK, 7]], rule="top1-entropy")
    with pytest.raises(AdapterError, match="BartForConditionalGeneration is a sequence-to-sequence model"):
        LanguageModel.of(tiny("bart"), mask_id=MASK, end_ids=[])


def test_a_network_that_looks_nowhere_before_its_training_is_tried_again_after_it():
    """NeoMME's attention starts with weights of 0."""
    model = tiny("neomme")
    trained = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name:
                weight.zero_()
    denoiser = HFMaskedDenoiser(MaskedLM(model, VOCAB, MASK))
    unmask.sample(denoiser, [[5, MASK, 6]], ONE, seed=0)
    before = sharing_of(model, 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(trained[name])
    assert sharing_of(model, 0) is not before


@pytest.mark.parametrize("kind", ["roberta", "ibert", "mpnet", "esm", "luke", "longformer"])
def test_the_limit_counts_the_positions_that_can_be_used(kind: str):
    model = LanguageModel.of(tiny(kind), mask_id=MASK, end_ids=[])
    assert model.max_length is not None
    assert model.max_length < 128
    check_limit(model, model.max_length)


def test_a_table_of_tokens_is_not_taken_for_the_table_of_positions():
    """They are of one size, and the table of tokens has a row for padding."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = BertForMaskedLM(BertConfig(vocab_size=VOCAB, max_position_embeddings=VOCAB, pad_token_id=3, **sizes))
    language = LanguageModel.of(model.eval(), mask_id=MASK, end_ids=[])
    assert language.max_length == VOCAB
    check_limit(language, VOCAB)


def test_one_limit_holds_everywhere():
    model = tiny("roberta")
    language, denoiser = LanguageModel.of(model, mask_id=MASK, end_ids=[]), HFMaskedDenoiser(MaskedLM(model, VOCAB, 4))
    assert language.max_length == denoiser.max_length == 127
    long = [5] * 127
    refused = "sequence 1 has 128 tokens, more than the 127 that the model takes"
    for one in (language, denoiser, Guided(denoiser, 1.0, torch.zeros(1, 1).bool())):
        with pytest.raises(ValueError, match=refused):
            unmask.sample(one, [[MASK], [*long, MASK]], ONE, seed=0)
    with pytest.raises(ValueError, match=refused):
        unmask.nelbo(denoiser, [long, [*long, 5]], seed=0)
    with pytest.raises(ValueError, match="more than the 127 that the model takes"):
        language.infill([[*long, MASK]], rule="top1-entropy")
    with pytest.raises(ValueError, match="more than the 127 that the model takes"):
        language.generate([long], rule="top1-entropy", max_new_tokens=1)
    x = torch.full((1, 128), MASK)
    with pytest.raises(ValueError, match="cannot take 128 tokens: it has 127 positions"):
        denoiser.network(x, x == MASK)


def test_any_denoiser_may_have_a_longest_length():
    class Short(unmask.FullDenoiser):
        max_length = 3

        def __call__(self, query: unmask.Query) -> torch.Tensor:
            raise AssertionError("evaluated")

    denoiser = Short(lambda x: torch.zeros(*x.shape, 4), 4, 3)
    with pytest.raises(ValueError, match="sequence 0 has 4 tokens, more than the 3 that the model takes"):
        unmask.sample(denoiser, torch.full((2, 4), 3), ONE, seed=0)

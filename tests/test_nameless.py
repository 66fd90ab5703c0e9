"""Ids beyond the tokenizer are never drawn, whoever asks: they have no text, and would vanish from an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from decoders import KINDS, byte_level
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import unmask
from unmask import nelbo
from unmask.denoiser import Query
from unmask.errors import AdapterError
from unmask.integrations.transformers import generate
from unmask.language import LanguageModel
from unmask.models.pretrained.cache import Cached
from unmask.models.pretrained.nameless import nameless_ids
from unmask.rules.named import named_rule

TOKENIZER = byte_level()
NAMED, PADDED = len(TOKENIZER), len(TOKENIZER) + 26
BEYOND = list(range(NAMED, PADDED))
END, MASK = 1, 2
EB = "entropy-bound:gamma=0.3"


class Beyond(nn.Module):
    """Surest of ids that are no token, at every position."""

    def forward(self, x: Any, where: Any, time: Any = None, valid: Any = None) -> torch.Tensor:
        rows = torch.zeros(PADDED).index_fill(0, torch.tensor(BEYOND), 30.0).index_fill(0, torch.tensor([7]), 10.0)
        return rows.expand(int(where.sum()), -1)  # of one storage: not to be written to


def model(network: nn.Module | None = None, ends: tuple[int, ...] = (END,)) -> LanguageModel:
    return LanguageModel(network or Beyond(), PADDED, MASK, TOKENIZER, ends)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """As Qwen and Dream are: more rows of embeddings than tokens; it writes what is no token wherever it may."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=PADDED,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=None,
        eos_token_id=END,
    )
    config.is_causal, config.mask_token_id = False, MASK
    made = LlamaForCausalLM(config).eval()
    return saying_what_is_beyond(made)


def saying_what_is_beyond(made: LlamaForCausalLM) -> LlamaForCausalLM:
    def add(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + torch.zeros(PADDED).index_fill(0, torch.tensor(BEYOND), 20.0)

    made.lm_head.register_forward_hook(add)
    return made


def test_what_is_beyond_the_tokenizer_is_found_for_every_kind():
    for make in KINDS.values():
        tokenizer = make()
        assert nameless_ids(tokenizer, len(tokenizer)) == []
        assert nameless_ids(tokenizer, len(tokenizer) + 4) == list(range(len(tokenizer), len(tokenizer) + 4))
        assert nameless_ids(tokenizer, 5) == []
    holes: Any = byte_level()
    holes.get_vocab = lambda: {name: token for name, token in byte_level().get_vocab().items() if token not in (8, 9)}
    holes.decode = lambda tokens: "" if tokens == [8] else "x"  # 9 shares its name with another
    assert nameless_ids(holes, NAMED) == [8]


def test_a_token_that_is_added_later_has_a_name_then():
    tokenizer = byte_level()
    assert nameless_ids(tokenizer, NAMED + 2) == [NAMED, NAMED + 1]
    tokenizer.add_tokens(["<new>"])
    assert nameless_ids(tokenizer, NAMED + 2) == [NAMED + 1]
    nameless_ids(tokenizer, NAMED + 2).clear()
    assert nameless_ids(tokenizer, NAMED + 2) == [NAMED + 1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0}, {"guidance": 1.0}, {"rule": "left-to-right"}, {"top_k": 3, "temperature": 9.0}],
)
def test_answers_are_made_of_tokens(settings: dict[str, Any]):
    answers = model().generate(["a", "bc"], max_new_tokens=12, **{"rule": EB, **settings})
    for one in answers:
        assert max(one.tokens) < NAMED
        assert one.text == TOKENIZER.decode([t for t in one.tokens if t != END], skip_special_tokens=True)


def test_gaps_and_samples_are_made_of_tokens():
    for temperature in (0.0, 1.0):
        (one,) = model().infill([[5, MASK, MASK, 6]], rule=EB, temperature=temperature)
        assert max(one.tokens) < NAMED
        x = torch.full((4, 9), MASK)
        for rule in (EB, "speculative", "all", "noisy-bound:gamma=0.3"):
            found = unmask.sample(model(), x, named_rule(rule).rule, seed=1, temperature=temperature)
            assert int(found.tokens.max()) < NAMED


def test_rules_plan_without_them():
    """Two tokens of equal chance, whatever the mass of the ids that are none."""
    query = Query.of(torch.full((1, 3), MASK), MASK)
    logits = model()(query)
    assert bool((logits[:, BEYOND] == -torch.inf).all())
    assert bool((Beyond()(query.x, query.where)[:, BEYOND] == 30).all())
    estimate = nelbo(model(), torch.full((1, 3), 7), strata=3, replicates=1, seed=0)
    others = torch.zeros(NAMED - 1)
    others[6] = 10.0  # token 7, without the mask
    assert float(estimate.nelbo[0]) == pytest.approx(-3 * float(others.log_softmax(-1)[6]), abs=1e-6)


def test_caches_and_models_of_the_library_do_without_them(llama: LlamaForCausalLM):
    adapted = LanguageModel.of(llama, TOKENIZER, end_ids=[END])
    plain = adapted.generate(["abc"], rule="topk:k=2", max_new_tokens=8, block_length=4)[0]
    assert max(plain.tokens) < NAMED
    query = Query.of(torch.tensor([[5, 6, MASK, MASK]]), MASK)
    assert bool((adapted(query)[:, BEYOND] == -torch.inf).all())
    for cache in ("prefix", "dual"):
        cached = Cached(adapted, cache, 1)
        assert torch.equal(cached(query) == -torch.inf, adapted(query) == -torch.inf)
        options = {"rule": "topk:k=2", "max_new_tokens": 8, "block_length": 4, "cache": cache}
        assert adapted.generate(["abc"], cache_refresh=1, **options)[0].tokens == plain.tokens
        assert max(adapted.generate(["abc"], **options)[0].tokens) < NAMED


def test_generate_of_the_library_does_without_them(llama: LlamaForCausalLM, tmp_path: Any):
    model: Any = llama
    prompt = torch.tensor([[5, 6, 7]])
    options = {"custom_generate": generate, "rule": "topk:k=2", "max_new_tokens": 8}
    assert int(model.generate(prompt, **options).max()) >= NAMED  # nobody says what the tokens are
    told = model.generate(prompt, vocabulary=TOKENIZER, **options)
    assert int(told.max()) < NAMED
    TOKENIZER.save_pretrained(tmp_path)
    llama.save_pretrained(tmp_path)
    loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    loaded.config.is_causal, loaded.config.mask_token_id = False, MASK
    assert torch.equal(saying_what_is_beyond(loaded).generate(prompt, **options), told)  # pyright: ignore


@pytest.mark.parametrize("damage", [lambda file: file.write_text("{}"), lambda file: file.unlink()])
def test_a_damaged_tokenizer_beside_a_model_is_refused(llama: LlamaForCausalLM, tmp_path: Any, damage: Any):
    TOKENIZER.save_pretrained(tmp_path)
    damage(tmp_path / "tokenizer.json")
    llama.save_pretrained(tmp_path)
    loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    loaded.config.is_causal, loaded.config.mask_token_id = False, MASK
    saying_what_is_beyond(loaded)
    options = {"custom_generate": generate, "rule": "topk:k=2", "max_new_tokens": 8}
    with pytest.raises(AdapterError, match=r"tokenizer.*repair its files, or give vocabulary=tokenizer") as caught:
        loaded.generate(torch.tensor([[5, 6, 7]]), **options)
    assert "\n" not in str(caught.value)
    assert int(loaded.generate(torch.tensor([[5, 6, 7]]), vocabulary=TOKENIZER, **options).max()) < NAMED


def test_an_end_token_without_a_name_is_an_end():
    ended = model(ends=(PADDED - 1,))
    (one,) = ended.generate(["a"], rule="left-to-right", max_new_tokens=8)
    assert (one.finish_reason, one.tokens, one.text) == ("end", (PADDED - 1,), "")


def test_a_tokenizer_of_another_model_is_refused():
    other: Any = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer)
    other.get_vocab = lambda: {"a": 900}
    other.decode = lambda tokens: ""
    with pytest.raises(ValueError, match=r"no token among the ids 0\.\.4 of the model but the mask's"):
        LanguageModel(Beyond(), 5, MASK, other)

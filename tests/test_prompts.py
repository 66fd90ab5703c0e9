"""Prompts of any text, with every kind of tokenizer: what the model is shown is what the tokenizer says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from decoders import KINDS, byte_level, mask_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unmask.language import LanguageModel
from unmask.language.prompts import encode_text, surroundings

pytestmark = pytest.mark.filterwarnings("ignore:This sequence already has </s>")
TOKENIZERS = {name: make() for name, make in KINDS.items()}
AROUND = {
    "llama-like": ((0,), ()),
    "llama-like, bare": ((), ()),
    "byte-level": ((), ()),
    "byte-level, bos": ((0,), ()),
    "word-piece": ((2,), (3,)),
    "python": ((), (1,)),
}


class Random(nn.Module):
    """Logits that depend on all of the tokens of a sequence, and on nothing else."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, x: Any, where: Any, time: Any = None, valid: Any = None) -> torch.Tensor:
        row, column = where.nonzero(as_tuple=True)
        place = torch.arange(1, x.shape[1] + 1)
        about = (x.masked_fill(~valid, 0) * place).sum(-1)[row] + 7 * column
        return 3 * torch.sin(about.double().unsqueeze(-1) * torch.arange(1, self.vocab_size + 1))


def model(name: str) -> LanguageModel:
    tokenizer = TOKENIZERS[name]
    mask = mask_of(tokenizer)
    size = max(len(tokenizer), mask + 1)
    ends = [token for token in (tokenizer.eos_token_id, tokenizer.sep_token_id) if token is not None]
    return LanguageModel(Random(size), size, mask, tokenizer, ends)


MODELS = {name: model(name) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_put_around_a_text_is_told_from_a_text(name: str):
    assert surroundings(TOKENIZERS[name]) == AROUND[name]


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_prompt_and_special_tokens_keep_the_beginning_in_front(name: str):
    """The case from the field: the beginning-of-text token came to stand behind the answer."""
    tokenizer, (before, after) = TOKENIZERS[name], AROUND[name]
    for text in ("", *tokenizer.all_special_tokens, 2 * tokenizer.all_special_tokens[0]):
        prompt = encode_text(text, tokenizer)
        assert [*prompt.tokens, *prompt.suffix] == tokenizer(text)["input_ids"]
        assert (prompt.tokens[: len(before)], prompt.suffix) == (before, after)
    seen: list[list[int]] = []
    model = MODELS[name]
    model.generate([""], rule="all", max_new_tokens=3, on_step=lambda state, _: seen.append(state.x[0].tolist()))
    assert len(seen[0]) == len(before) + 3 + len(after)
    assert seen[0][: len(before)] == list(before)
    assert seen[0][len(before) + 3 :] == list(after)


def test_a_tokenizer_that_puts_different_tokens_around_texts_is_taken_at_its_word():
    class Fickle:
        """Ends only texts of more than a token."""

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            plain = [ord(letter) for letter in text]
            return {"input_ids": [*plain, 9] if add_special_tokens and len(plain) != 2 else plain}

        def get_vocab(self) -> dict[str, int]:
            return {"a": 97}

    fickle: Any = Fickle()
    assert (encode_text("abc", fickle).tokens, encode_text("abc", fickle).suffix) == ((97, 98, 99), (9,))
    assert (encode_text("ab", fickle).tokens, encode_text("ab", fickle).suffix) == ((97, 98), ())


def test_answers_to_one_prompt_are_those_to_equal_prompts():
    model = MODELS["byte-level"]
    options = {"rule": "entropy-bound:gamma=0.3", "max_new_tokens": 6, "temperature": 1.0}
    several = model.generate(["ab", "c"], n=3, **options)
    copies = model.generate(["ab", "ab", "ab", "c", "c", "c"], **options)
    assert [one.tokens for one in several] == [one.tokens for one in copies]
    assert [one.prompt for one in several] == ["ab"] * 3 + ["c"] * 3
    assert len({one.stream for one in several}) == 6
    assert [one.tokens for one in model.generate("ab", **options)] == [several[0].tokens]
    streams = [one.stream for one in several]
    assert model.generate(["ab", "c"], n=3, streams=streams, **options)[4].tokens == several[4].tokens
    assert model.generate([], n=2, **options) == []
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match="n must be a whole number >= 1"):
            model.generate("ab", n=wrong, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="2 streams for 6 answers"):
        model.generate(["ab", "c"], n=3, streams=[1, 2], **options)


PIECES = st.one_of(
    st.text(max_size=6), st.sampled_from(["<s>", "</s>", "<turn>", "[CLS]", "[SEP]", "<pad>", " ", "\n", "##s"])
)
TEXTS = st.lists(PIECES, max_size=5).map("".join)


def check(name: str, text: str, stop: list[str], temperature: float) -> None:
    """Any text but one with the mask token has an answer; around it is what the tokenizer puts there."""
    model, (before, after) = MODELS[name], AROUND[name]
    tokenizer = TOKENIZERS[name]
    whole = tokenizer(text)["input_ids"]
    prompt = encode_text(text, tokenizer)
    assert [*prompt.tokens, *prompt.suffix] == whole
    assert (prompt.tokens[: len(before)], prompt.suffix) == (before, after)
    seen: list[list[int]] = []
    (answer,) = model.generate(
        [text],
        rule="entropy-bound:gamma=1",
        max_new_tokens=4,
        temperature=temperature,
        stop=stop,
        on_step=lambda state, _: seen.append(state.x[0].tolist()),
    )
    assert all(x[: len(prompt.tokens)] == list(prompt.tokens) for x in seen)
    assert all(x[len(prompt.tokens) + 4 :] == list(after) for x in seen)
    assert seen[-1][len(prompt.tokens) :][: answer.new_tokens] == list(answer.tokens)
    assert not any(one in answer.text for one in stop)
    if answer.finish_reason != "stop":
        kept = [*prompt.tokens, *(token for token in answer.tokens if token not in model.end_ids)]
        assert tokenizer.decode(kept, skip_special_tokens=True).endswith(answer.text)
    (alone,) = model.generate([list(prompt.tokens)], rule="all", max_new_tokens=1)  # ids are taken as they are
    assert alone.new_tokens == 1


STOPS = st.lists(st.text(min_size=1, max_size=2), max_size=2)


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXTS, stop=STOPS, temperature=st.sampled_from([0.0, 1.0]))
@settings(max_examples=25)
def test_any_text_is_answered(name: str, text: str, stop: list[str], temperature: float):
    check(name, text, stop, temperature)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@given(text=TEXTS, stop=STOPS, temperature=st.sampled_from([0.0, 1.0]))
@settings(max_examples=500)
def test_any_text_is_answered_at_length(name: str, text: str, stop: list[str], temperature: float):
    check(name, text, stop, temperature)


ROLES = st.lists(st.sampled_from(["system", "user", "assistant", "tool", "", "né"]), min_size=1, max_size=4)
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('roles!') }}{% endif %}"
    "<turn>{{ m.role }} {{ m.content }}{% endfor %}{% if add_generation_prompt %}<turn>{% endif %}"
)


@given(roles=ROLES, texts=st.lists(TEXTS, min_size=4, max_size=4))
@settings(max_examples=50)
def test_any_chat_is_answered_or_refused_in_a_line(roles: list[str], texts: list[str]):
    model = MODELS["byte-level, bos"]
    tokenizer: Any = model.tokenizer
    tokenizer.chat_template = TEMPLATE
    chat = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    if not set(roles) <= {"user", "assistant"}:
        with pytest.raises(ValueError, match="prompt 0: the chat template refuses") as caught:
            model.encode([chat])
        assert len(str(caught.value).splitlines()) == 1
        return
    (answer,) = model.generate(chat, rule="all", max_new_tokens=2)
    written = "".join(f"<turn>{one['role']} {one['content']}" for one in chat) + "<turn>"
    assert answer.prompt == written
    assert model.encode([chat])[0] == tokenizer(written, add_special_tokens=False)["input_ids"]


@given(text=TEXTS)
def test_gaps_in_any_text_are_filled_and_the_rest_is_kept(text: str):
    model = MODELS["byte-level"]
    if "<mask>" in text:
        return
    (one,) = model.infill([f"{text}[MASK:2]{text}"], rule="all")
    shown: Any = byte_level().decode(byte_level()(text)["input_ids"], skip_special_tokens=True)
    assert len(one.tokens) == 2
    assert one.text.startswith(shown[:-1])
    assert one.text.endswith(shown[1:])

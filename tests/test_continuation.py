"""The text of tokens is what they add: with every kind of decoder, in answers, stops, chats and while written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from decoders import KINDS, llama_like, mask_of, word_piece
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unmask.cli.generate import canvas
from unmask.language import LanguageModel
from unmask.language.texts import Continuation

TOKENIZERS = {name: make() for name, make in KINDS.items()}


class Plan(nn.Module):
    """Writes given tokens behind a prompt of given length."""

    def __init__(self, tokens: list[int], lead: int, vocab_size: int) -> None:
        super().__init__()
        self.plan, self.lead, self.vocab_size = torch.tensor(tokens), lead, vocab_size

    def forward(self, x: Any, where: Any, time: Any = None, valid: Any = None) -> torch.Tensor:
        return 20.0 * nn.functional.one_hot(self.plan[where.nonzero()[:, 1] - self.lead], self.vocab_size)


def writing(tokenizer: Any, prompt: Any, tokens: list[int], ends: tuple[int, ...] = (), **options: Any) -> Any:
    """What a model answers that writes these tokens, from left to right."""
    mask = mask_of(tokenizer)
    size = max(len(tokenizer), mask + 1)
    lead = len(LanguageModel(nn.Linear(1, 1), size, mask, tokenizer).encode([prompt])[0])
    model = LanguageModel(Plan(tokens, lead, size), size, mask, tokenizer, ends)
    (answer,) = model.generate([prompt], rule="left-to-right", max_new_tokens=len(tokens), **options)
    return answer


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def after(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """The tokens that a text is continued with."""
    whole, known = ids(tokenizer, prompt + text), ids(tokenizer, prompt)
    assert whole[: len(known)] == known
    return whole[len(known) :]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "word-piece"])
@pytest.mark.parametrize("text", [" sky is blue", "\n    return 1", "    , the", ", é", " the sky"])
def test_an_answer_keeps_the_space_that_it_begins_with(name: str, text: str):
    tokenizer = TOKENIZERS[name]
    answer = writing(tokenizer, "def is the", after(tokenizer, "def is the", text))
    assert answer.text == text


def test_a_piece_of_a_word_is_joined_to_what_is_before_it():
    tokenizer: Any = word_piece()
    for tokens, text in ((["##s", "is", "."], "s is."), (["sky", "##s"], " skys"), (["'", "s"], " ' s")):
        assert writing(tokenizer, "the blue", tokenizer.convert_tokens_to_ids(tokens)).text == text
    assert writing(tokenizer, "", tokenizer.convert_tokens_to_ids(["sky", "is"])).text == "sky is"


def test_a_character_that_the_prompt_begins_is_of_the_answer():
    for name in ("byte-level", "llama-like", "python"):
        tokenizer = TOKENIZERS[name]
        *first, last = tokenizer("the sky é", add_special_tokens=True)["input_ids"][: -1 if name == "python" else None]
        assert writing(tokenizer, first, [last]).text == "é"


@pytest.mark.parametrize("name", KINDS)
def test_the_text_of_a_chat_follows_its_special_tokens(name: str):
    tokenizer = TOKENIZERS[name] if name != "word-piece" else word_piece()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    chat = [{"role": "user", "content": "the sky"}]
    words = ids(tokenizer, " is the")
    whole = tokenizer.decode([*ids(tokenizer, "the sky "), *words])
    assert tokenizer.decode(ids(tokenizer, "the sky ")) + writing(tokenizer, chat, words).text == whole


STOPS = [
    ("3", "12", 4),
    ("<turn>", "12", 3),
    ("2<turn>", "1", 3),
    ("turn>3", "12", 4),  # begins inside a special token
    (">", "12", 3),
    ("23", "1234", 5),
    ("</s>", "1234", 5),
]


@pytest.mark.parametrize(("stop", "text", "count"), STOPS)
def test_a_stop_string_is_looked_for_among_the_special_tokens(stop: str, text: str, count: int):
    """The case from the field: special tokens never stopped, and strings were found across them."""
    tokenizer = TOKENIZERS["byte-level"]
    answer = writing(tokenizer, "x", ids(tokenizer, "12<turn>34"), stop=stop)
    assert (answer.text, answer.new_tokens) == (text, count)
    assert answer.finish_reason == ("stop" if count < 5 else "length")


def test_a_stop_string_may_begin_with_the_space_of_the_answer_or_within_a_token():
    tokenizer = llama_like()
    tokens = after(tokenizer, "the sky", " sky is\nthe")
    assert writing(tokenizer, "the sky", tokens, stop=" s").text == ""
    assert writing(tokenizer, "the sky", tokens, stop="ky").text == " s"
    assert writing(tokenizer, "the sky", tokens, stop="\nthe").text == " sky is"
    assert writing(tokenizer, "the sky", tokens, stop=["zzz", "is\n", "y"]).text == " sk"


def test_an_end_token_is_an_end_even_as_a_stop_string():
    tokenizer = TOKENIZERS["byte-level"]
    end = tokenizer.eos_token_id
    answer = writing(tokenizer, "x", [*ids(tokenizer, "12"), end, *ids(tokenizer, "3")], (end,), stop=["</s>", "3"])
    assert (answer.text, answer.finish_reason, answer.new_tokens) == ("12", "end", 3)


TOKENS = st.lists(st.integers(0, 10**6), max_size=8)


def read(name: str, numbers: list[int]) -> list[int]:
    tokenizer = TOKENIZERS[name]
    return [number % len(tokenizer) for number in numbers]


@pytest.mark.parametrize("name", KINDS)
@given(before=TOKENS, tokens=TOKENS, special=st.booleans())
def test_a_prompt_and_what_is_added_are_the_whole(name: str, before: list[int], tokens: list[int], special: bool):
    tokenizer = TOKENIZERS[name]
    first, added = read(name, before), read(name, tokens)
    whole = tokenizer.decode([*first, *added], skip_special_tokens=not special)
    text = Continuation(tokenizer, first).text(added, special=special)
    known = tokenizer.decode(first, skip_special_tokens=not special)
    assert whole.endswith(text)
    kept = whole[: len(whole) - len(text)]
    assert known.startswith(kept)  # less only where the prompt's last characters are made of more than its tokens
    assert kept == known or not whole.startswith(known)


@pytest.mark.parametrize("name", KINDS)
@given(
    before=TOKENS, tokens=TOKENS, stops=st.lists(st.integers(0, 10**6), min_size=1, max_size=3), size=st.integers(1, 3)
)
def test_stops_equal_a_search_token_by_token(
    name: str, before: list[int], tokens: list[int], stops: list[int], size: int
):
    tokenizer = TOKENIZERS[name]
    reader, added = Continuation(tokenizer, read(name, before)), read(name, tokens)
    written = reader.text(added, special=True)
    sought = [written[at % len(written) :][:size] if written else "x" for at in stops]
    sought = [stop for stop in sought if "\N{REPLACEMENT CHARACTER}" not in stop]  # these come and go
    texts = [reader.text(added[:count], special=True) for count in range(len(added) + 1)]
    held = [any(stop in text for stop in sought) for text in texts]
    found = reader.stop(added, sought)
    if not held[-1]:
        assert found is None
        return
    assert found is not None
    count, text = found
    assert held[count]
    assert not held[count - 1]
    cut = min(texts[count].index(stop) for stop in sought if stop in texts[count])
    whole = [n for n in range(count) if texts[count][:cut].startswith(texts[n])]
    assert text.startswith(reader.text(added[: max(whole)]))
    assert len(text) <= len(reader.text(added[:count]))
    if not {*reader.before, *added} & set(tokenizer.all_special_ids):
        assert text == texts[count][:cut]


def test_a_canvas_shows_words_where_they_will_be():
    tokenizer = llama_like()
    model = LanguageModel(nn.Linear(1, 1), len(tokenizer), 2, tokenizer)
    prompt, words = ids(tokenizer, "the"), after(tokenizer, "the", " sky is")
    assert canvas(model, [*words[:1], 2, *words[1:], 2], prompt) == " sky░ is░"
    assert canvas(model, [2, *words], prompt) == "░ sky is"
    pieces: Any = word_piece()
    bert = LanguageModel(nn.Linear(1, 1), len(pieces), 4, pieces)
    assert canvas(bert, [*pieces.convert_tokens_to_ids(["##s", "[MASK]", "is"])], ids(pieces, "sky")) == "s░ is"


def test_decoding_after_nothing_is_decoding():
    tokenizer = llama_like()
    model = LanguageModel(nn.Linear(1, 1), len(tokenizer), 2, tokenizer)
    tokens = ids(tokenizer, "the sky<turn>is")
    assert model.decode(tokens) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert model.decode(tokens, special=True) == tokenizer.decode(tokens)
    assert model.decode(tokens[1:], after=tokens[:1], special=True) == tokenizer.decode(tokens)[3:]
    assert model.decode([]) == ""
    assert LanguageModel(nn.Linear(1, 1), 9, 2).decode([1, 2], after=[3]) == ""

"""One answer on its canvas: ends, stop strings, and the text that is released while it is written."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

import unmask
from unmask.language import LanguageModel
from unmask.language.canvas import Canvas
from unmask.tasks.instructions import END_ID, MASK_ID, encode


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    loaded = unmask.load("chat")
    assert isinstance(loaded, LanguageModel)
    return loaded


def canvas(model: LanguageModel, masks: int, **options) -> Canvas:
    return Canvas([*encode("12+35="), *[MASK_ID] * masks], MASK_ID, model.tokenizer, ends=[END_ID], **options)


def write(one: Canvas, nfe: int, positions: list[int], tokens: list[int]) -> None:
    one.turn(nfe, positions, tokens, [-0.1 * nfe] * len(tokens))


def test_what_is_written_becomes_a_completion(model):
    one = canvas(model, 4)
    write(one, 1, [7], encode("7"))
    assert (one.open, one.written(), one.release()) == ([6, 8, 9], [], "")
    write(one, 2, [6, 8], [*encode("4"), END_ID])
    assert (one.open, one.release(), one.cut) == ([], "47", 8)
    done = one.completion("12+35=", 0.5, -1)
    assert (done.text, done.tokens, done.steps) == ("47", (*encode("47"), END_ID), (2, 1, 2))
    assert done.log_probs == (-0.2, -0.1, -0.2)
    assert (done.nfe, done.new_tokens, done.finish_reason, done.stream) == (2, 3, "end", 2**64 - 1)


def test_an_end_that_is_masked_again_opens_what_comes_after_it(model):
    one = canvas(model, 4)
    write(one, 1, [7], [END_ID])
    assert one.open == [6]
    one.turn(2, erased=[7])
    assert (one.open, one.cut) == ([6, 7, 8, 9], 10)
    write(one, 3, [6, 7, 8, 9], encode("4321"))
    assert one.ending() == ("length", 4, "4321")


def test_a_stop_string_ends_it_once_it_stands_without_a_gap(model):
    one = canvas(model, 6, stops=["99"])
    write(one, 1, [8, 9], encode("99"))
    assert one.stopped is None
    write(one, 2, [6, 7], encode("12"))
    assert (one.stopped, one.open, one.release()) == ((4, "12"), [], "12")
    assert one.completion("", 0.0, 0).finish_reason == "stop"


def test_what_may_become_a_stop_string_is_held_back(model):
    one = canvas(model, 6, stops=["45", "3x"])
    write(one, 1, [6, 7], encode("34"))
    assert one.release() == "3"  # "34" is not "3x", and "4" may become "45"
    write(one, 2, [8], encode("4"))
    assert one.release() == "4"
    write(one, 3, [9], encode("5"))
    assert (one.release(), one.ending()[2]) == ("", "34")


def test_half_a_character_is_held_back():
    class Bytes:
        """A tokenizer whose tokens are bytes."""

        def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
            return bytes(tokens).decode(errors="replace")

    one = Canvas([65, 300, 300, 300], 300, Bytes())  # pyright: ignore[reportArgumentType]
    released = []
    for nfe, (position, byte) in enumerate(zip((1, 2, 3), [*"é".encode(), 66], strict=True), 1):
        write(one, nfe, [position], [byte])
        released.append(one.release())
    assert released == ["", "é", "B"]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_released_adds_up_to_the_text_in_any_order_of_writing(model, seed):
    draw = random.Random(seed)
    text = "".join(draw.choice("12") for _ in range(12))
    one = canvas(model, 16, stops=["2211", "121"])
    tokens = dict(zip(itertools.count(6), [*encode(text), *[END_ID] * 4], strict=False))
    released = []
    for nfe in itertools.count(1):
        if not one.open:
            break
        chosen = draw.sample(one.open, min(len(one.open), draw.randint(1, 3)))
        write(one, nfe, chosen, [tokens[position] for position in chosen])
        released.append(one.release())
    found = min([text.index(stop) for stop in one.stops if stop in text], default=len(text))
    assert "".join(released) == one.completion("", 0.0, 0).text == text[:found]


def test_the_text_of_an_infilling_is_the_whole(model):
    one = Canvas([*encode("1"), MASK_ID, *encode("3")], MASK_ID, model.tokenizer, whole=True)
    write(one, 1, [1], encode("2"))
    assert (one.ending()[2], one.completion("", 0.0, 0).text) == ("2", "123")


def test_what_is_final_ends_with_the_answer(model):
    one = canvas(model, 5)
    start = one.gap[0]
    write(one, 1, [start + 1], encode("7"))
    assert one.final() == []
    write(one, 2, [start], encode("4"))
    assert one.final() == encode("47")
    write(one, 3, [start + 3], [END_ID])
    assert one.final() == encode("47")
    write(one, 4, [start + 2], encode("1"))
    assert one.final() == [*encode("471"), END_ID]


def test_a_caller_ends_an_answer_and_is_asked_again_about_what_has_changed(model):
    asked: list[list[int]] = []

    def until(answer: Sequence[int]) -> bool:
        asked.append(list(answer))
        return list(answer) == encode("45")

    one = canvas(model, 5, until=until)
    start = one.gap[0]
    write(one, 1, [start + 1, start + 3], encode("79"))
    assert asked == []
    write(one, 2, [start], encode("4"))
    assert asked == [encode("4"), encode("47")]
    one.turn(3)
    assert asked[2:] == [encode("47")]
    one.turn(4, erased=[start + 1])
    assert asked[3:] == [encode("4")]
    write(one, 5, [start + 1, start + 2], encode("51"))
    assert asked[4:] == [encode("45")]
    assert (one.open, one.ending(), one.final()) == ([], ("stop", 2, "45"), encode("45"))

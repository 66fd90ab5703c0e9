"""Wrong values given to a language model: refused by a line that names them, never by an inner library's exception."""

import math

import pytest
import torch
from layouts import write_text_model

import unmask
from unmask.draws.streams import derive
from unmask.language import LanguageModel
from unmask.tasks.instructions import MASK_ID


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return unmask.load(write_text_model(tmp_path_factory.mktemp("model")))


ANYTHING = [None, 5, "x", -1, 1.5, math.nan, math.inf, True, [], [None], ["x"], [[1]], {}, object(), 10**30, b"a"]
ANYTHING += [torch.tensor([1.5]), torch.tensor(1), {"a"}]
OPTIONS = ["rule", "max_new_tokens", "block_length", "temperature", "seed", "stop", "top_k", "top_p", "forbidden"]
OPTIONS += ["guidance", "cache", "cache_refresh", "end_last", "batch_size", "streams", "on_step"]


def refusal(call) -> str:
    """What a refusal says, nothing if the call went well; any other exception is raised."""
    said = ""
    try:
        call()
    except ValueError as error:
        said = str(error) or "\n"
    assert "\n" not in said
    return said


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_refused_by_our_own_words(option, model):
    for value in ANYTHING:
        options = {"rule": "all", "max_new_tokens": 2, option: value}
        refusal(lambda options=options: model.generate(["1+1="], **options))


LONE = "1\ud83d+1="
CHAT = {"role": "user", "content": "1+1="}
MESSAGES = [[{}], [{"role": "user"}], [{"role": 5, "content": None}], [{**CHAT, "content": LONE}]]


@pytest.mark.parametrize(
    "prompts",
    [*ANYTHING, [[-1]], [[10**6]], [[10**12]], [[1.5]], [[True]], [LONE], CHAT, [CHAT], MESSAGES, *MESSAGES, [[]]],
)
def test_prompts_are_refused_by_our_own_words(prompts, model):
    refusal(lambda: model.generate(prompts, rule="all", max_new_tokens=2))
    refusal(lambda: model.encode(prompts))
    refusal(lambda: model.infill(prompts, rule="all"))


@pytest.mark.parametrize("spans", [5, "x", [None], [[None]], [[("a", 1, 1)]], [[(0.5, 1, 1)]], [[(0, 10**9, 1)]], []])
def test_spans_are_refused_by_our_own_words(spans, model):
    assert refusal(lambda: model.infill(["12+35="], rule="all", spans=spans))


@pytest.mark.parametrize("size", ["99999999999", "9" * 5000, "1048577"])
def test_gaps_of_absurd_size_are_refused_before_they_are_written(size, model):
    said = refusal(lambda: model.infill(f"12[MASK:{size}]35=", rule="all"))
    assert "has gaps of more than 1048576 tokens" in said


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[-1]], {}, "the token id at place 0 is -1"),
        (CHAT, {}, r"this is one message: give \[\{'role'"),
        (LONE, {}, "half of a surrogate pair at character 1"),
        ([[{**CHAT, "content": LONE}]], {}, "half of a surrogate pair"),
        ("1+1=", {"stop": LONE}, "half of a surrogate pair"),
        ("1+1=", {"seed": None}, "seed is an integer, got None"),
        ("1+1=", {"seed": "x"}, "seed is an integer, got 'x'"),
        ("1+1=", {"rule": 5}, "rule is a Rule or its name"),
        ("1+1=", {"max_new_tokens": 10**12}, "more than the 64 that the model takes"),
        ([[{"role": "user"}]], {}, "both texts"),
    ],
)
def test_refusals_name_what_was_given(prompts, options, words, model):
    with pytest.raises(ValueError, match=words):
        model.generate(prompts, **{"rule": "all", "max_new_tokens": 2, **options})


def test_what_was_right_stays_right(model):
    assert isinstance(model, LanguageModel)
    plain = model.generate("1+1=", rule="all", max_new_tokens=2)[0].tokens
    assert model.generate("1+1=", rule="all", max_new_tokens=2, stop=None)[0].tokens == plain
    ids = torch.tensor(model.encode("1+1="))
    assert model.generate(ids, rule="all", max_new_tokens=2, forbidden={3, 4})[0].new_tokens <= 2
    gap = torch.cat([ids, torch.tensor([[MASK_ID]])], 1)
    assert model.infill(gap, rule="all")[0].new_tokens == 1  # pyright: ignore[reportArgumentType]


def test_seeds_of_streams_are_integers():
    assert derive(3, 1) == derive(torch.tensor(3), 1)  # pyright: ignore[reportArgumentType]
    for seed in (None, "x", 1.5, [1]):
        with pytest.raises(ValueError, match="seed is an integer"):
            derive(seed, 1)  # pyright: ignore[reportArgumentType]

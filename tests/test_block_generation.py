"""Generation in the blocks of the attention: with a cache and without, alone, in batches and in a queue: one answer."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from block_layouts import CONFIGS, OPTIONS, PROMPTS, SIZE, shapes, weights, write_block_model
from block_layouts import NEW as NEW_ANSWER
from layouts import MASK, VOCAB, WIDTH, seeded, write_files
from test_cli import run as command

import unmask
from unmask.denoiser import Query
from unmask.language import LanguageModel
from unmask.language.whole_blocks import WholeBlocks
from unmask.models.pretrained.cache import Cached
from unmask.rules.named import named_rule
from unmask.sampling.loop import Sampler
from unmask.sampling.queue import Pool
from unmask.sampling.state import State
from unmask.tasks.instructions import MASK_ID, InstructionTask, save_tokenizer

BLOCKS = sorted(set(CONFIGS) - {"illada"})
ANSWERS = json.loads((Path(__file__).parent / "data" / "block-answers.json").read_text())
RULE, NEW = "entropy-bound:gamma=5", 7


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {layout: model_of(tmp_path_factory.mktemp(layout), layout) for layout in CONFIGS}


def model_of(folder, layout: str) -> LanguageModel:
    """A tiny model; a sixth of all tokens end an answer, so that some leave a batch before others."""
    network = unmask.load(write_block_model(folder, layout), **OPTIONS.get(layout, {})).network
    return LanguageModel(network, VOCAB, MASK, end_ids=range(30, 36), max_length=64)


def prompts(count: int) -> list[list[int]]:
    """Prompts of 1 to 13 tokens."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 30, (1 + place % 13,), generator=generator).tolist() for place in range(count)]


def answers(model: LanguageModel, asked: Sequence[list[int]], **options) -> list[tuple[tuple[int, ...], int]]:
    """Tokens and evaluations of each answer, with a stream of its own."""
    options = {"rule": RULE, "max_new_tokens": NEW, "temperature": 1.0, "end_last": False, **options}
    found = model.generate(asked, streams=range(len(asked)), **options)
    return [(one.tokens, one.nfe) for one in found]


def queued(model: LanguageModel, asked: Sequence[list[int]], slots: int) -> list[tuple[int, ...]]:
    """Answers through a few slots, each taken by the next sequence when it becomes free."""
    cached = Cached(model, "block-causal", slots)
    pool, sampler = Pool(cached), Sampler(cached, named_rule(RULE).rule)
    waiting, found = list(enumerate(asked)), {}
    while waiting or len(pool):
        while waiting and len(pool) < slots:
            number, prompt = waiting.pop(0)
            length = len(prompt) + NEW
            x = torch.tensor([[*prompt, *[MASK] * (NEW + -length % SIZE)]])
            position = torch.arange(x.shape[1]).unsqueeze(0)
            asks = (position >= len(prompt)) & (position < length)
            blocks = position.div(SIZE, rounding_mode="floor")
            pool.join(sampler, sampler.start(x, streams=[number], blocks=blocks, fill=asks, slots=[number]))
        pool.evaluate()
        for state in pool.leave():
            number = int(state.slot)
            found[number] = tuple(state.x[0, len(asked[number]) : len(asked[number]) + NEW].tolist())
            cached.forget([number])
    return [found[number] for number in range(len(asked))]


@pytest.mark.parametrize("cache", ["none", "block-causal"])
@pytest.mark.parametrize("layout", sorted(ANSWERS))
def test_answers_are_those_of_the_families_own_generation(models, layout, cache):
    """By the argmax, one token at a time: Fast-dLLM's from left to right, SDAR's the surest first, block by block."""
    model = LanguageModel(models[layout].network, VOCAB, MASK, max_length=64)
    rule = "left-to-right" if layout == "fast_dllm" else "topk:k=1"
    for prompt, expected in zip(PROMPTS, ANSWERS[layout], strict=True):
        new = NEW_ANSWER + -(len(prompt) + NEW_ANSWER) % SIZE  # theirs fill the last block
        (found,) = model.generate([prompt], rule=rule, max_new_tokens=new, cache=cache)
        assert list(found.tokens[:NEW_ANSWER]) == expected


@pytest.mark.parametrize("layout", BLOCKS)
def test_the_cache_changes_no_answer(models, layout):
    asked = prompts(100)
    kept = answers(models[layout], asked, batch_size=25)
    assert kept == answers(models[layout], asked, batch_size=25, cache="none")
    assert len({tokens for tokens, _ in kept}) > 70
    assert len({nfe for _, nfe in kept}) > 3


@pytest.mark.parametrize("layout", BLOCKS)
def test_an_answer_does_not_depend_on_what_it_is_evaluated_with(models, layout):
    asked = prompts(100)
    alone = answers(models[layout], asked, batch_size=1)
    assert answers(models[layout], asked, batch_size=8) == alone


@pytest.mark.parametrize("layout", BLOCKS)
def test_nor_on_who_is_in_the_queue(models, layout):
    endless = LanguageModel(models[layout].network, VOCAB, MASK, max_length=64)
    asked = prompts(100)
    assert queued(endless, asked, 7) == [tokens for tokens, _ in answers(endless, asked, batch_size=25)]


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_nor_where_positions_look_both_ways(models, cache):
    options = {"cache": cache, "block_length": NEW}
    asked = prompts(100)
    alone = answers(models["illada"], asked, batch_size=1, **options)
    assert answers(models["illada"], asked, batch_size=8, **options) == alone


def test_gaps_are_filled_in_block_by_block(models):
    text = [*range(5), *[MASK] * 4, *range(5), *[MASK] * 2]
    states: list[State] = []
    models["sdar"].infill([text], rule="topk:k=1", on_step=lambda state, info: states.append(state))
    assert states[0].block[0].tolist() == [place // SIZE for place in range(len(text))]
    assert len(states) == 6
    for state in states[:3]:
        assert bool((state.x[0, 8] == MASK) | (state.x[0, 14:] == MASK).all())


def write_text_sdar(folder: Path, size: int = SIZE) -> Path:
    """A tiny SDAR whose tokens are those of the instructions, with their tokenizer."""
    vocabulary = InstructionTask.vocab_size
    tables = seeded({name: (vocabulary, WIDTH) for name in shapes("sdar") if "embed" in name or "lm_head" in name})
    config = {**CONFIGS["sdar"], "vocab_size": vocabulary, "mask_token_id": MASK_ID, "block_size": size}
    write_files(folder, config, {**weights("sdar"), **tables}, shards=2)
    save_tokenizer(folder)
    return folder


def test_the_command_line_has_the_same_defaults(tmp_path):
    folder = str(write_text_sdar(tmp_path))
    shown = ["generate", folder, "-p", "12+35=", "-p", "What is 9 plus 4?", "--max-new-tokens", "10"]
    shown += ["--temperature", "1", "--json"]

    def tokens(*options: str) -> list[list[int]]:
        return [one["tokens"] for one in json.loads(command(*shown, *options))]

    found = tokens()
    assert found == tokens("--cache", "none") == tokens("--block-length", str(SIZE)) == tokens("--block-causal", "4")
    assert found != tokens("--block-length", "64")
    model = unmask.load(folder)
    assert isinstance(model, LanguageModel)
    answers = model.generate(
        ["12+35=", "What is 9 plus 4?"], rule="entropy-bound:gamma=0.1", max_new_tokens=10, temperature=1.0
    )
    assert found == [list(one.tokens) for one in answers]
    with pytest.raises(
        unmask.errors.AdapterError, match=r"block_size = 4, but block_causal=8 is given; leave block_causal out"
    ):
        tokens("--block-causal", "8")


def test_a_server_keeps_finished_blocks_by_default(tmp_path):
    from unmask.serving.served import serve_models

    folder = str(write_text_sdar(tmp_path / "sdar"))
    chat, sdar = serve_models(["chat", folder])
    assert chat.cached is None
    assert isinstance(sdar.cached, Cached)
    assert sdar.cached.cache == "block-causal"
    assert serve_models([folder], cache="none")[0].cached is None


def scores(model: LanguageModel, pairs: list[tuple[str, str]], batch_size: int = 4) -> list[tuple[float, bool]]:
    instance = pytest.importorskip("lm_eval.api.instance", reason="needs lm_eval: the extra eval")

    from unmask.integrations.lm_eval import UnmaskLM

    asked = [
        instance.Instance("loglikelihood", {}, pair, index, ("task", index, 1)) for index, pair in enumerate(pairs)
    ]
    return UnmaskLM(model, "left-to-right", batch_size=batch_size).loglikelihood(asked)


def test_blocks_of_one_are_scored_by_the_chain_rule(tmp_path):
    model = unmask.load(write_text_sdar(tmp_path, size=1))
    assert isinstance(model, LanguageModel)
    pairs = [("12+35=", "47"), ("What is 9 plus 4?", " thirteen"), ("x", "y")]
    for (found, greedy), (context, scored) in zip(scores(model, pairs), pairs, strict=True):
        tokens = model.tokenizer(context + scored, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportOptionalCall]
        expected, own = 0.0, True
        for place in range(len(tokens) - len(scored), len(tokens)):  # a token is a character
            row = model(Query.of(torch.tensor([[*tokens[:place], MASK_ID]]), MASK_ID))[0].double().log_softmax(-1)
            expected += float(row[tokens[place]])
            own &= int(row.argmax()) == tokens[place]
        assert abs(found - expected) < 1e-4 * abs(expected)
        assert greedy == own


def test_blocks_are_scored_one_after_the_other(tmp_path):
    model = unmask.load(write_text_sdar(tmp_path))
    assert isinstance(model, LanguageModel)
    # A token is a character: blocks end after 12, 16 and 20 of them.
    ((whole, _),) = scores(model, [("12+35=47; 9", "+4=13; 7")])
    parts = [("12+35=47; 9", "+"), ("12+35=47; 9+", "4=13"), ("12+35=47; 9+4=13", "; 7")]
    assert abs(whole - sum(value for value, _ in scores(model, parts))) < 1e-4 * abs(whole)
    assert abs(whole - scores(model, [("12+35=47; 9", "+4=13; 7")], batch_size=1)[0][0]) < 1e-4 * abs(whole)


def test_a_text_that_ends_within_a_block_is_judged_with_masks_behind_it(models):
    seen, short = WholeBlocks(models["sdar"]), [5, 6, 7, 8, MASK, 3]
    query = Query.of(torch.tensor([short]), MASK)
    x = torch.tensor([[*short, MASK, MASK]])
    where = torch.zeros_like(x, dtype=torch.bool)
    where[0, 4] = True
    longer = Query(x, where, torch.ones_like(where), torch.arange(1))
    assert torch.equal(seen(query), models["sdar"](longer))
    assert not torch.equal(seen(query), models["sdar"](query))
    with pytest.raises(ValueError, match="has no blocks"):
        WholeBlocks(models["illada"])

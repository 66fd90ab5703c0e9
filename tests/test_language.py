import math

import pytest
import torch
from layouts import write, write_text_model

import unmask
from unmask.denoiser import Query
from unmask.language import LanguageModel
from unmask.language.guidance import Guided
from unmask.rules.named import named_rule
from unmask.tasks.instructions import END_ID, MASK_ID, InstructionTask, encode

ONE = "topk:k=1"


class Scripted(torch.nn.Module):
    """Says what a script says, surer of later positions, whatever it is shown; `lead` tokens are the prompt."""

    def __init__(self, script: str, lead: int, end: int = END_ID, sure: float = 4.0) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.tokens, self.lead, self.end, self.sure = encode(script), lead, end, sure
        self.asked: list[list[int]] = []

    def forward(self, x, where, time=None, valid=None):
        self.asked.append(where.sum(-1).tolist())
        position = where.nonzero()[:, 1] - self.lead
        logits = torch.zeros(len(position), InstructionTask.vocab_size)
        for row, place in enumerate(position.tolist()):
            token = self.tokens[place] if place < len(self.tokens) else self.end
            logits[row, token] = self.sure + 0.1 * place
        return logits


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """An untrained model with the tokenizer of the instructions."""
    return write_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(folder):
    return unmask.load(folder)


def scripted(model, script: str, lead: int, **options) -> tuple[LanguageModel, Scripted]:
    network = Scripted(script, lead, **options)
    return LanguageModel(network, model.vocab_size, model.mask_id, model.tokenizer, [END_ID], 96), network


def test_a_language_model_is_a_denoiser(model):
    assert isinstance(model, LanguageModel)
    assert isinstance(model, unmask.Denoiser)
    assert (model.mask_id, model.end_ids, model.max_length) == (MASK_ID, (END_ID,), 64)
    x = torch.tensor([[*encode("1+1="), MASK_ID, MASK_ID]])
    assert unmask.sample(model, x, named_rule(ONE).rule, seed=0).masks_left.item() == 0


def test_an_answer_ends_at_its_first_end_token(model):
    scripted_model, network = scripted(model, "47", 6)
    (one,) = scripted_model.generate("12+35=", rule=ONE, max_new_tokens=16)
    assert (one.prompt, one.text, one.finish_reason) == ("12+35=", "47", "end")
    assert one.tokens == (*encode("47"), END_ID)
    assert one.new_tokens == one.nfe == len(one.log_probs) == 3
    # The later of the two is surer, and the end waits for both although it is surer still.
    assert one.steps == (2, 1, 3)
    assert network.asked == [[16], [15], [14]]


def test_the_end_goes_with_the_last_of_the_text_if_the_rule_allows_it(model):
    for sure, nfe in ((60.0, 1), (6.0, 3)):  # all within the budget; or none beside another
        scripted_model, _ = scripted(model, "47", 6, sure=sure)
        (one,) = scripted_model.generate("12+35=", rule="entropy-bound:gamma=0.01", max_new_tokens=6)
        assert (one.text, one.nfe) == ("47", nfe)
    scripted_model, _ = scripted(model, "47", 6, sure=60.0)
    (one,) = scripted_model.generate("12+35=", rule="topk:k=2", max_new_tokens=6)
    assert (one.text, one.steps) == ("47", (1, 1, 2))  # the end waits for both, though it is as sure


def test_log_probabilities_are_those_of_the_moment(model):
    scripted_model, _ = scripted(model, "47", 6)
    (one,) = scripted_model.generate("12+35=", rule=ONE, max_new_tokens=4)
    others = InstructionTask.vocab_size - 2  # the token itself, and the mask, which is never drawn
    expected = [(4 + place / 10) - math.log(math.exp(4 + place / 10) + others) for place in range(3)]
    assert one.log_probs == pytest.approx(expected, abs=1e-6)


def test_without_waiting_the_surest_end_comes_first(model):
    scripted_model, network = scripted(model, "47", 6)
    (one,) = scripted_model.generate("12+35=", rule=ONE, max_new_tokens=6, end_last=False)
    assert one.text == "47"
    assert one.nfe == 6  # from the far end on
    assert network.asked[:2] == [[6], [5]]
    scripted_model, network = scripted(model, "47", 6, sure=60.0)
    (one,) = scripted_model.generate("12+35=", rule="threshold:threshold=0.9", max_new_tokens=6, end_last=False)
    assert (one.text, one.nfe) == ("47", 1)


def test_a_rule_that_does_not_look_needs_no_waiting(model):
    both, network = scripted(model, "123", 2)
    first, second = both.generate(["1=", "9="], rule="left-to-right", max_new_tokens=8)
    assert first.text == second.text == "123"
    assert network.asked == [[1, 1]] * 4


def test_blocks_are_filled_from_left_to_right(model):
    scripted_model, network = scripted(model, "123456", 6)
    (one,) = scripted_model.generate("12+35=", rule=ONE, max_new_tokens=12, block_length=4)
    assert one.text == "123456"
    assert max(one.steps[:4]) < min(one.steps[4:])
    assert network.asked == [[4], [3], [2], [1], [4], [3], [2]]


def test_stop_strings_end_an_answer_and_are_no_part_of_it(model):
    scripted_model, _ = scripted(model, "123, 456", 6)
    (one,) = scripted_model.generate("12+35=", rule="left-to-right", max_new_tokens=16, stop=[", 4", ", "])
    assert (one.text, one.finish_reason, one.nfe) == ("123", "stop", 5)
    assert one.tokens == tuple(encode("123, "))
    (other,) = scripted_model.generate("12+35=", rule="all", max_new_tokens=16, stop="789", end_last=False)
    assert (other.text, other.finish_reason) == ("123, 456", "end")
    # Written all at once: what comes after the stop string does not count.
    (cut,) = scripted_model.generate("12+35=", rule="all", max_new_tokens=16, stop=", ", end_last=False)
    assert (cut.text, cut.new_tokens, cut.nfe) == ("123", 5, 1)


def test_a_stop_string_after_the_end_is_none(model):
    scripted_model, network = scripted(model, "12", 2)
    network.tokens = [*encode("12"), END_ID, *encode("99")]
    (one,) = scripted_model.generate("1=", rule="all", max_new_tokens=8, stop="99", end_last=False)
    assert (one.text, one.finish_reason) == ("12", "end")


def test_a_canvas_without_an_end_is_full(model):
    scripted_model, _ = scripted(model, "1234", 2)
    (one,) = scripted_model.generate("1=", rule=ONE, max_new_tokens=3)
    assert (one.text, one.finish_reason, one.new_tokens) == ("123", "length", 3)


def test_forbidden_tokens_do_not_appear(model):
    scripted_model, _ = scripted(model, "47", 2)
    (one,) = scripted_model.generate("1=", rule=ONE, max_new_tokens=4, forbidden=[*encode("4"), END_ID])
    assert one.finish_reason == "length"
    assert not set(one.tokens) & {*encode("4"), END_ID, MASK_ID}


@pytest.mark.parametrize("settings", [{}, {"block_length": 4}, {"temperature": 1.0, "seed": 3}, {"guidance": 0.5}])
def test_an_answer_does_not_depend_on_its_batch(model, settings):
    prompts = ["1+1=", "What is 9 plus 4?", "Sort 3 2 1.", "Reverse 12345.", "Count from 1 to 9.", "7*8=", "7*8="]
    options = {"rule": "entropy-bound:gamma=0.5", "max_new_tokens": 12, **settings}
    alone = [model.generate(prompt, batch_size=1, **options)[0] for prompt in prompts[:-1]]
    for size in (2, 7):
        together = model.generate(prompts, batch_size=size, **options)
        assert [one.tokens for one in together[:-1]] == [one.tokens for one in alone]
        assert [one.nfe for one in together[:-1]] == [one.nfe for one in alone]
        assert [one.prompt for one in together] == prompts
    if settings.get("temperature"):
        assert together[-1].stream != together[-2].stream  # copies differ


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_hundred_prompts_are_answered_alike_in_any_batch(model, temperature):
    texts = [one.prompt for one in InstructionTask().instructions("validation", 100)]
    options = {"rule": "entropy-bound:gamma=0.5", "max_new_tokens": 16, "temperature": temperature}
    alone = [one.tokens for one in model.generate(texts, batch_size=1, **options)]
    for size in (8, 32):
        assert [one.tokens for one in model.generate(texts, batch_size=size, **options)] == alone
    chosen = texts[:8]  # beside shorter and longer neighbours
    beside = model.generate([text for one in chosen for text in (one, "1+1=", "9" * 40)], batch_size=24, **options)
    assert [one.tokens for one in beside[::3]] == alone[:8]


def test_streams_are_the_seed_spelled_out(model):
    options = {"rule": ONE, "max_new_tokens": 6, "temperature": 1.0}
    first = model.generate(["1+1=", "2+2="], seed=5, **options)
    again = model.generate(["2+2=", "1+1="], streams=[first[1].stream, first[0].stream], **options)
    assert [one.tokens for one in again] == [first[1].tokens, first[0].tokens]
    other = model.generate(["1+1=", "2+2="], seed=6, **options)
    assert [one.tokens for one in other] != [one.tokens for one in first]


def test_chats_go_through_the_template(model):
    chat = [
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2="},
    ]
    (one,) = model.generate(chat, rule=ONE, max_new_tokens=4)
    assert one.prompt == "<|user|>1+1=<|assistant|>2<|endoftext|><|user|>2+2=<|assistant|>"
    assert len(model.generate([chat, chat[:1]], rule=ONE, max_new_tokens=4)) == 2
    assert model.encode("1+1=") == [encode("1+1=")]
    ids = model.generate([encode("1+1=")], rule=ONE, max_new_tokens=4)[0]
    assert ids.tokens == model.generate("1+1=", rule=ONE, max_new_tokens=4)[0].tokens
    with pytest.raises(ValueError, match="roles of a chat"):
        model.generate([{"role": "system", "content": "x"}], rule=ONE, max_new_tokens=4)


def test_gaps_are_filled_and_the_rest_is_kept(model):
    one, two = model.infill(["12+[MASK:2]=47", "[MASK]+3"], rule=ONE)
    assert (one.prompt, len(one.text), one.text[:3], one.text[5:]) == ("12+[MASK:2]=47", 8, "12+", "=47")
    assert (one.new_tokens, one.nfe, len(two.tokens), two.text[1:]) == (2, 2, 1, "+3")
    assert not set(one.tokens + two.tokens) & set(range(END_ID, model.vocab_size))
    (spans,) = model.infill("12+35=47", spans=[[(3, 5, 2)]], rule=ONE)
    assert (spans.text, spans.prompt) == (one.text, one.prompt)
    (three,) = model.infill("ab", spans=[[(0, 1, 1), (2, 2, 3)]], rule=ONE)
    assert (three.prompt, len(three.text)) == ("[MASK:1]b[MASK:3]", 5)
    (ids,) = model.infill([[*encode("12+"), MASK_ID, MASK_ID, *encode("=47")]], rule=ONE)
    assert (ids.text, ids.tokens) == (one.text, one.tokens)


def test_guidance_goes_away_from_what_is_said_without_the_prompt(model):
    x = torch.tensor([[*encode("1+1="), MASK_ID, MASK_ID]])
    query = Query.of(x, MASK_ID)
    prompt = torch.tensor([[True] * 4 + [False] * 2])
    given = model(query)
    without = model(Query(torch.full_like(x, MASK_ID), query.where, query.valid, query.sequence))
    keep = [token for token in range(model.vocab_size) if token != MASK_ID]
    guided = Guided(model, 1.5, prompt)(query)
    assert (guided - (without + 2.5 * (given - without)))[:, keep].abs().max() < 1e-4
    assert (guided[:, MASK_ID] == -torch.inf).all()
    plain = model.generate("1+1=", rule=ONE, max_new_tokens=8)[0]
    assert model.generate("1+1=", rule=ONE, max_new_tokens=8, guidance=0.0)[0].tokens == plain.tokens
    assert model.generate("1+1=", rule=ONE, max_new_tokens=8, guidance=4.0)[0].tokens != plain.tokens


def test_guidance_asks_for_all_there_is_of_both_states():
    seen: list[Query] = []

    class Watched(unmask.FullDenoiser):
        def __call__(self, query: Query) -> torch.Tensor:
            seen.append(query)
            return super().__call__(query)

    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    watched = Watched(lambda x: table[x].cumsum(1), 5, 4)
    guided = Guided(watched, 1.0, torch.tensor([[True, False, False]] * 2))
    unmask.sample(
        guided, torch.tensor([[1, 4, 4], [2, 4, 4]]), unmask.Rule(unmask.Entropy(), unmask.One()), seed=0, blocks=1
    )
    for query in seen:
        assert query.block is not None
        assert len(query.x) == len(query.block) == len(query.sequence)
        assert len(query.rows) == int(query.where.sum())


def test_a_model_in_memory(model):
    network = model.network.model
    same = LanguageModel.of(network, model.tokenizer, mask_id=MASK_ID)
    assert same.end_ids == model.end_ids
    assert same.max_length == model.max_length
    options = {"rule": ONE, "max_new_tokens": 6}
    assert same.generate("1+1=", **options)[0].tokens == model.generate("1+1=", **options)[0].tokens
    bare = LanguageModel.of(network, mask_id=MASK_ID, end_ids=[END_ID])
    (one,) = bare.generate([encode("1+1=")], **options)
    assert (one.prompt, one.text) == ("", "")
    assert one.tokens == model.generate("1+1=", **options)[0].tokens
    with pytest.raises(ValueError, match="lists of token ids"):
        bare.generate("1+1=", **options)
    with pytest.raises(ValueError, match="give mask_id"):
        LanguageModel.of(network)


def test_a_layout_without_a_tokenizer_is_a_denoiser_only(tmp_path):
    assert not isinstance(unmask.load(write(tmp_path, "llada")), LanguageModel)


def test_end_tokens_of_a_configuration_may_be_several(folder, tmp_path):
    import json
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "eos_token_id": [END_ID, 3]}))
    assert unmask.load(tmp_path / "m").end_ids == (3, END_ID)  # pyright: ignore


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1"),
        ({"max_new_tokens": 61}, "prompt 0 has 4 tokens, which with 61 masks is more than the 64"),
        ({"block_length": 3}, "block_length 3 does not divide max_new_tokens 8"),
        ({"block_length": 0}, "block_length must be"),
        ({"rule": "nonsense"}, "unknown rule 'nonsense'"),
        ({"rule": "topk:q=3"}, "q does not apply"),
        ({"rule": "left-to-right", "end_last": True}, "end_last does not go with"),
        ({"stop": [""]}, "stop string must not be empty"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"guidance": -1.0}, "guidance must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"streams": [1, 2]}, "2 streams for 1 answers"),
        ({"forbidden": [1000]}, "outside the vocabulary"),
    ],
)
def test_bad_settings_are_refused(model, settings, words):
    with pytest.raises(ValueError, match=words):
        model.generate("1+1=", **{"rule": ONE, "max_new_tokens": 8, **settings})


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([3.5], "a prompt is a text"),
        (["1<|mask|>"], "prompt 0 holds the mask token"),
        ([[5, 10_000]], "outside the vocabulary"),
    ],
)
def test_bad_prompts_are_refused(model, prompts, words):
    with pytest.raises(ValueError, match=words):
        model.generate(prompts, rule=ONE, max_new_tokens=4)


@pytest.mark.parametrize(
    ("text", "spans", "words"),
    [
        ("no gap", None, "has no gap"),
        ("a [MASK:0] gap", None, "has no gap"),
        ("abc", [(0, 2, 1), (1, 3, 1)], "overlaps"),
        ("abc", [(2, 9, 1)], "outside the text"),
        ("abc", [], "has no gap"),
    ],
)
def test_bad_gaps_are_refused(model, text, spans, words):
    with pytest.raises(ValueError, match=words):
        model.infill(text, rule=ONE, spans=None if spans is None else [spans])
    with pytest.raises(ValueError, match="lists of spans"):
        model.infill(text, rule=ONE, spans=[[], []])


def test_nothing_to_answer(model):
    assert model.generate([], rule=ONE, max_new_tokens=4) == []


def test_a_bert_ends_its_text_where_its_tokenizer_does(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            pad_token_id=0,
        )
        BertForMaskedLM(config).save_pretrained(tmp_path)
    bert = unmask.load(tmp_path)
    assert isinstance(bert, LanguageModel)
    assert (bert.mask_id, bert.end_ids, bert.max_length) == (4, (3,), 16)
    (one,) = bert.infill("the [MASK:2] on the mat", rule=ONE)
    assert one.text.split()[0] == "the"
    assert one.text.split()[-3:] == ["on", "the", "mat"]
    assert len(one.tokens) == 2
    seen = []
    bert.generate("the cat", rule=ONE, max_new_tokens=2, on_step=lambda state, info: seen.append(state.x[0].tolist()))
    assert (seen[0][:3], seen[0][-1], len(seen[0])) == ([2, 5, 6], 3, 6)


class Wavering(Scripted):
    """Ends or goes on, as likely the one as the other."""

    def forward(self, x, where, time=None, valid=None):
        logits = torch.full((int(where.sum()), InstructionTask.vocab_size), -torch.inf)
        logits[:, [self.tokens[0], self.end]] = 0.0
        return logits


@pytest.mark.parametrize("rule", ["remdm:steps=8,rate=0.5", "p2:steps=6,eta=2", "gibbs:sweeps=2,budget=all"])
def test_an_end_that_is_masked_again_lets_the_answer_go_on(model, rule):
    """What comes after an end token is let go of; without the end it has to be written, and was left masked."""
    waverer = LanguageModel(Wavering("a", 2), model.vocab_size, model.mask_id, model.tokenizer, [END_ID], 96)
    answers = waverer.generate([encode("1+")] * 64, rule=rule, max_new_tokens=8, seed=0, temperature=1.0)
    assert all(MASK_ID not in answer.tokens for answer in answers)
    assert len({len(answer.tokens) for answer in answers}) > 2
    stopped = waverer.generate([encode("1+")] * 64, rule=rule, max_new_tokens=8, seed=0, temperature=1.0, stop="aa")
    assert all(MASK_ID not in answer.tokens and "aa" not in answer.text for answer in stopped)

"""The harness's model class on a tiny network in LLaDA's layout: answers, likelihoods, and the command around them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from decoders import byte_level, word_piece
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from test_continuation import Plan
from test_harness import EB, GSM, HUMAN, MATH, MBPP, write
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner

from unmask import derive, nelbo
from unmask.cli import app
from unmask.denoiser import Query
from unmask.integrations.harness import evaluate
from unmask.integrations.lm_eval import UnmaskLM
from unmask.language import LanguageModel
from unmask.models.pretrained.llada import new_llada, save_llada
from unmask.models.registry import load
from unmask.tasks.instructions import END_ID, MASK_ID, PAD_ID, InstructionTask, encode, save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights, large enough to have something to say, and a token per character."""
    made = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 24}
    network = new_llada(sizes, InstructionTask.vocab_size, MASK_ID, 1536, PAD_ID)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    save_llada(made, network, {}, END_ID)
    save_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    loaded = load(folder, dtype=torch.float64)
    assert isinstance(loaded, LanguageModel)
    return loaded


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    files = {"gsm8k_train": GSM[:6], "gsm8k_test": GSM[6:], "math500": MATH, "humaneval": HUMAN, "mbpp": MBPP}
    for name, rows in files.items():
        write(made / f"{name}.jsonl", rows)
    return made


def asking(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, index, ("task", index, 1)) for index, one in enumerate(arguments)]


TEXTS = ["12+35=", "What is 9 plus 4?", "Reverse 3814.", "a", "Sort 31 7 25. Then count from 7 to 12."]


def test_answers_are_those_of_the_language_model_in_any_batch(model: LanguageModel):
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    requests = asking("generate_until", *[(text, settings) for text in TEXTS])
    together = UnmaskLM(model, EB, batch_size=3).generate_until(requests)
    alone = [UnmaskLM(model, EB, batch_size=1).generate_until([request])[0] for request in requests]
    assert together == alone
    streams = [derive(0, encode(text), 0) for text in TEXTS]
    own = model.generate(TEXTS, rule=EB, max_new_tokens=12, temperature=1.0, stop="\n", streams=streams)
    assert together == [one.text for one in own]
    counted = UnmaskLM(model, EB)
    counted.generate_until(requests)
    costs = counted.costs()["task"]
    assert costs["requests"] == 5
    assert costs["nfe_mean"] == sum(one.nfe for one in own) / 5
    assert costs["tokens_per_evaluation"] == sum(one.new_tokens for one in own) / sum(one.nfe for one in own)


def test_likelihoods_are_minus_the_nelbo_in_any_batch(model: LanguageModel):
    pairs = [
        ("12+35=", "47"),
        ("7*8=", " fifty-six, or so they say"),
        ("What is 9 plus 4? ", "13"),
        ("", "abc"),
        ("x", "y"),
    ]
    requests = asking("loglikelihood", *pairs)
    lm = UnmaskLM(model, EB, batch_size=4, strata=8, replicates=2)
    found = lm.loglikelihood(requests)
    alone = [UnmaskLM(model, EB, batch_size=1, strata=8).loglikelihood([request])[0] for request in requests]
    for (value, greedy), (other, same) in zip(found, alone, strict=True):
        assert value == pytest.approx(other, abs=1e-9)
        assert greedy == same
        assert value < 0
    context, scored = encode("7*8="), encode(pairs[1][1])
    maskable = torch.tensor([[False] * len(context) + [True] * len(scored)])
    own = nelbo(
        model,
        [context + scored],
        maskable=maskable,
        strata=8,
        replicates=2,
        streams=[derive(0, context, scored)],
    )
    assert found[1][0] == pytest.approx(-float(own.nelbo[0]), abs=1e-9)
    assert lm.costs()["task"]["requests"] == 5
    # One token has one mask and one likelihood: a single evaluation tells it, another one answers at the argmax.
    single = UnmaskLM(model, EB)
    single.loglikelihood(requests[4:])
    assert single.costs()["task"]["nfe_mean"] == 2


def test_a_continuation_is_greedy_if_it_is_the_models_own(model: LanguageModel):
    best = model.generate(["7*8="], rule=EB, max_new_tokens=6, end_last=False)[0]
    text = model.decode(best.tokens, special=True)
    other = "zzzzzz" if text != "zzzzzz" else "yyyyyy"
    lm = UnmaskLM(model, EB)
    scores = lm._loglikelihood_tokens(
        [(("", ""), encode("7*8="), list(best.tokens)), (("", ""), encode("7*8="), encode(other))]
    )
    assert [greedy for _, greedy in scores] == [best.new_tokens == 6, False]
    unchecked = UnmaskLM(model, EB, check_greedy=False)
    assert not unchecked._loglikelihood_tokens([(("", ""), encode("7*8="), list(best.tokens))])[0][1]


def test_long_texts_are_scored_in_windows(model: LanguageModel):
    lm = UnmaskLM(model, EB, strata=2, replicates=1)
    short, long = "abc" * 20, "abcd" * 500
    values = lm.loglikelihood_rolling(asking("loglikelihood_rolling", (short,), (long,)))
    assert values[1] < values[0] < 0
    half = lm.loglikelihood_rolling(asking("loglikelihood_rolling", (long[:1536],), (long[1536:],)))
    assert values[1] == pytest.approx(sum(half), abs=1e-9)


def test_the_harness_finds_the_class_by_name(folder: Path):
    made = get_model("unmask").create_from_arg_obj(
        {"pretrained": str(folder), "rule": EB}, {"batch_size": 2, "device": None}
    )
    assert isinstance(made, UnmaskLM)
    assert made.batch_size == 2
    assert made.get_model_info()["rule"] == "entropy-bound:gamma=0.1,proxy=entropy"


def test_settings_out_of_range_are_refused(model: LanguageModel):
    with pytest.raises(ValueError, match="batch_size must be an integer"):
        UnmaskLM(model, EB, batch_size="auto")
    with pytest.raises(ValueError, match="unknown rule"):
        UnmaskLM(model, "entropybound")
    with pytest.raises(ValueError, match="gama does not apply"):
        UnmaskLM(model, "entropy-bound", gama=0.1)
    with pytest.raises(ValueError, match="is not a language model"):
        UnmaskLM("maze", EB)
    with pytest.raises(ValueError, match="unknown dtype 'int4'"):
        UnmaskLM(model, EB, dtype="int4")
    lm = UnmaskLM(model, EB)
    with pytest.raises(ValueError, match="does not fit a model of 1536"):
        lm._loglikelihood_tokens([(("", ""), [1], [2] * 1537)])


def test_chats_go_through_the_template(model: LanguageModel):
    lm = UnmaskLM(model, EB)
    text = lm.apply_chat_template([{"role": "user", "content": "7*8="}])
    assert text == "<|user|>7*8=<|assistant|>"
    assert lm.tok_encode(text) == model.encode([[{"role": "user", "content": "7*8="}]])[0]
    rows = evaluate(UnmaskLM(model, EB, max_new_tokens=8), ["instructions"], limit=3, chat=True)
    assert rows[0]["requests"] == 3


COMMAND = [
    "eval",
    "--rule",
    "entropy-bound",
    "--gamma",
    "0.1",
    "--max-new-tokens",
    "16",
    "--temperature",
    "1",
    "--json",
]


def test_the_command_prints_results_with_their_costs(folder: Path, data: Path):
    arguments = [*COMMAND, str(folder), "--tasks", "math500,instructions", "--limit", "2", "--data", str(data)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["rule"] == "entropy-bound"
    assert report["settings"]["gamma"] == 0.1
    assert [row["task"] for row in report["tasks"]] == ["math500", "instructions"]
    for row in report["tasks"]:
        assert row["documents"] == 2
        assert 1 <= row["nfe_mean"] <= 16
        assert row["new_tokens_mean"] <= 16
        assert row["tokens_per_evaluation"] > 0
        assert row["seconds"] > 0
    for extra, message in (
        (["--tasks", "humaneval", "--data", str(data)], "--run-code"),
        (["--tasks", "gsm8k"], "give their folder with --data"),
    ):
        failed = CliRunner().invoke(app, [*COMMAND, str(folder), *extra])
        assert isinstance(failed.exception, ValueError)
        assert message in str(failed.exception)


def test_the_commands_start_without_the_extras():
    """What is not installed is named when it is asked for, and not before."""
    program = (
        "import sys\n"
        "for name in ('lm_eval', 'diffusers', 'datasets', 'sglang'): sys.modules[name] = None\n"
        "sys.argv = ['unmask', *sys.argv[1:]]\n"
        "from unmask.cli import main\n"
        "main()\n"
    )

    command = [sys.executable, "-c", program, "eval", "maze", "--tasks", "gsm8k", "--data", "."]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "pip install 'unmask[eval]'" in failed.stderr


@pytest.mark.slow
def test_a_task_that_the_harness_does_not_know_is_refused(model: LanguageModel):
    with pytest.raises(ValueError, match="unknown task nonsense; there are gsm8k"):
        evaluate(UnmaskLM(model, EB), ["nonsense"])


@pytest.mark.slow
def test_twenty_items_of_each_task_go_on_after_a_kill(folder: Path, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    gsm = [{"question": f"What is {n} plus 1?", "answer": f"{n} and 1 are {n + 1}.\n#### {n + 1}"} for n in range(24)]
    math = [{"question": f"Double {n}?", "answer": rf"\boxed{{{2 * n}}}"} for n in range(20)]
    human = [{**HUMAN[0], "task_id": f"HumanEval/{n}"} for n in range(20)]
    mbpp = [{**MBPP[0], "task_id": n, "text": f"Write a function to add {n}."} for n in range(2, 31)]
    files = {"gsm8k_train": gsm[:4], "gsm8k_test": gsm[4:], "math500": math, "humaneval": human, "mbpp": mbpp}
    for name, rows in files.items():
        write(data / f"{name}.jsonl", rows)
    store = tmp_path / "answers.jsonl"
    tasks = ["--tasks", "gsm8k,math500,humaneval,mbpp", "--limit", "20", "--data", str(data), "--run-code"]
    command = [sys.executable, "-m", "unmask", *COMMAND, str(folder), *tasks]
    process = subprocess.Popen([*command, "--out", str(store)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and (not store.exists() or len(store.read_text().splitlines()) < 12):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len([line for line in store.read_text().splitlines() if line.endswith("}")])
    assert 8 <= kept < 80
    resumed = json.loads(
        subprocess.run([*command, "--out", str(store)], capture_output=True, text=True, check=True).stdout
    )
    whole = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len([line for line in store.read_text().splitlines() if line.endswith("}")]) == 80
    timed = ("seconds", "tokens_per_second")
    for again, row in zip(resumed["tasks"], whole["tasks"], strict=True):
        assert row["documents"] == row["requests"] == 20
        assert {name: value for name, value in again.items() if name not in timed} == {
            name: value for name, value in row.items() if name not in timed
        }


@pytest.fixture(scope="module")
def bert() -> LanguageModel:
    """A tiny BERT: its tokenizer puts `[CLS]` before a text and `[SEP]` after it."""
    torch.manual_seed(0)
    tokenizer = word_piece()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    return LanguageModel.of(BertForMaskedLM(config).double().eval(), tokenizer)


def test_the_model_is_shown_what_generate_shows_it(bert: LanguageModel):
    """The case from the field: what comes behind the answer was dropped, and BERT answered another text."""
    settings = {"until": ["s"], "max_gen_toks": 6}
    texts = ["the sky is", "the", "blue " * 60]
    own = bert.generate(texts[:2], rule=EB, max_new_tokens=6, stop="s")
    lm = UnmaskLM(bert, EB)
    found = lm.generate_until(asking("generate_until", *[(text, settings) for text in texts]))
    assert found[:2] == [one.text for one in own]
    assert lm.costs()["task"]["prompts_cut"] == 1  # with its answer and `[SEP]` it is as long as the model takes


def test_likelihoods_are_of_the_text_with_what_is_put_around_it(bert: LanguageModel):
    lm = UnmaskLM(bert, EB, strata=1)
    (value, _), (empty, _) = lm.loglikelihood(asking("loglikelihood", ("the sky is", " blue"), ("", "blue")))
    tokenizer: Any = bert.tokenizer
    for text, at, scored in (("the sky is blue", 4, value), ("blue", 1, empty)):
        x = torch.tensor([tokenizer(text)["input_ids"]])
        token = int(x[0, at])
        x[0, at] = bert.mask_id
        assert scored == pytest.approx(float(bert(Query.of(x, bert.mask_id)).log_softmax(-1)[0, token]), abs=1e-9)
    (rolling,) = lm.loglikelihood_rolling(asking("loglikelihood_rolling", ("blue",)))
    assert rolling == pytest.approx(empty, abs=1e-9)
    long = lm.loglikelihood_rolling(asking("loglikelihood_rolling", ("blue " * 60,), ("blue " * 46,), ("blue " * 14,)))
    assert long[0] == pytest.approx(long[1] + long[2], abs=1e-9)
    with pytest.raises(ValueError, match="does not fit a model of 48"):
        lm.loglikelihood(asking("loglikelihood", ("the", " blue" * 48)))


def test_a_document_with_the_mask_token_is_answered_and_counted(model: LanguageModel, bert: LanguageModel):
    """The case from the field: it ended the whole evaluation, and was always called prompt 0."""
    settings = {"until": [], "max_gen_toks": 4}
    for one, marked in ((model, "1<|mask|>+2="), (bert, "the [MASK] is")):
        lm = UnmaskLM(one, EB, batch_size=1)
        plain = marked.replace("<|mask|>", "").replace("[MASK]", "")
        found = lm.generate_until(asking("generate_until", (plain, settings), (marked, settings), (plain, settings)))
        assert len(found) == 3
        assert lm.costs()["task"]["prompts_with_mask"] == 1
        assert one.mask_id not in lm.tok_encode(marked)
        pairs = asking("loglikelihood", (marked, " 1"), ("1", f" {marked}"), ("1", " 1"))
        scores = UnmaskLM(one, EB)
        assert all(value < 0 for value, _ in scores.loglikelihood(pairs))
        assert scores.costs()["task"]["prompts_with_mask"] == 2
        with pytest.raises(ValueError, match="prompt 1 holds the mask token"):
            one.generate([plain, marked], rule=EB, max_new_tokens=4)


@pytest.mark.parametrize(("until", "text"), [("<turn>", "12"), ("2<turn>", "1"), ("3", "12"), ("23", "1234")])
def test_what_ends_an_answer_is_looked_for_among_the_special_tokens(until: str, text: str):
    tokenizer = byte_level()
    plan = tokenizer("12<turn>34", add_special_tokens=False)["input_ids"]
    lm = UnmaskLM(LanguageModel(Plan(plan, 1, len(tokenizer)), len(tokenizer), 2, tokenizer), "left-to-right")
    assert lm.generate_until(asking("generate_until", ("x", {"until": [until], "max_gen_toks": 5}))) == [text]


def test_a_system_message_is_put_before_the_users_where_the_template_refuses_it(
    model: LanguageModel, caplog: pytest.LogCaptureFixture
):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "7*8="}]
    lm = UnmaskLM(model, EB)
    for _ in range(2):
        assert lm.apply_chat_template(chat) == "<|user|>be brief\n\n7*8=<|assistant|>"
    assert len([record for record in caplog.records if "no system role" in record.message]) == 1
    with pytest.raises(ValueError, match=r"it takes user \| user, assistant, user"):
        lm.apply_chat_template([{"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match="prompt 0: the chat template refuses messages of system, user"):
        model.generate([chat], rule=EB, max_new_tokens=4)

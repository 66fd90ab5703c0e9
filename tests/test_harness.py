"""lm-evaluation-harness on local files: prompts, stops and scores, with a model whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from torch import nn
from transformers import AutoTokenizer

from unmask.errors import DataError
from unmask.integrations.harness import evaluate
from unmask.integrations.harness.local_tasks import read_jsonl, score_gsm8k, score_humaneval, score_math, score_mbpp
from unmask.integrations.lm_eval import UnmaskLM
from unmask.language import Completion, LanguageModel
from unmask.tasks.instructions import END_ID, MASK_ID, InstructionTask, save_tokenizer

EB = "entropy-bound:gamma=0.1"
GSM = [
    {"question": f"What is {n} plus {n}?", "answer": f"It is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
    for n in range(9)
]
MATH = [{"question": f"Double {n}?", "answer": rf"$2 \cdot {n} = \boxed{{{2 * n}}}$"} for n in range(4)]
HUMAN = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def add{n}(a: int) -> int:\n    """Adds {n}."""\n',
        "entry_point": f"add{n}",
        "test": f"def check(candidate):\n    assert candidate(3) == {3 + n}\n",
    }
    for n in range(3)
]
MBPP = [
    {
        "task_id": n,
        "text": f"Write a function to add {n}.",
        "code": f"def add(a):\r\n  return a + {n}",
        "test_setup_code": "",
        "test_list": [f"assert add(1) == {n + 1}"],
    }
    for n in range(1, 14)
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    files = {"gsm8k_train": GSM[:6], "gsm8k_test": GSM[6:], "math500": MATH, "humaneval": HUMAN, "mbpp": MBPP}
    for name, rows in files.items():
        write(folder / f"{name}.jsonl", rows)
    return folder


class Scripted(LanguageModel):
    """Answers what a function says, and keeps what it was asked."""

    def __init__(self, folder: Path, answer: Callable[[str], str], max_length: int | None = None) -> None:
        save_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        task = InstructionTask
        super().__init__(nn.Linear(1, 1), task.vocab_size, MASK_ID, tokenizer, (END_ID,), max_length)
        self.answer = answer
        self.asked: list[str] = []
        self.settings: list[dict[str, Any]] = []

    def encode(self, prompts: Any) -> list[list[int]]:
        assert self.tokenizer is not None
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]  # pyright: ignore

    def generate(self, prompts: Any, **settings: Any) -> list[Completion]:
        assert self.tokenizer is not None
        self.settings.append(settings)
        completions = []
        for one, stream in zip(prompts, settings["streams"], strict=True):
            prompt = str(self.tokenizer.decode(one.tokens))
            self.asked.append(prompt)
            text = self.answer(prompt)
            for stop in settings["stop"]:
                text = text.partition(stop)[0]
            ids = tuple(self.encode([text])[0])
            nfe = max(1, len(ids) // 2)
            completions.append(Completion(prompt, text, ids, (), (), nfe, len(ids), 0.1, "end", stream))
        return completions


def run(model: LanguageModel, tasks: list[str], data: Path | None, limit: int | None = None, **settings: Any) -> Any:
    own = UnmaskLM(model, EB, **settings)
    rows = evaluate(own, tasks, data=data, limit=limit, run_code=True)
    return {row["task"]: row for row in rows}


def test_gsm8k_shows_worked_examples_and_finds_the_number(tmp_path: Path, data: Path):
    def answer(prompt: str) -> str:
        number = int(prompt.rpartition("What is ")[2].split()[0])
        return f" It is twice that. #### {2 * number if number < 8 else 0}\n\nQuestion: more?"

    model = Scripted(tmp_path, answer)
    row = run(model, ["gsm8k"], data)["gsm8k"]
    assert model.asked[0].count("Question:") == 5
    assert model.asked[0].startswith("Question: What is 0 plus 0?\nAnswer: It is <<0+0=0>>0.\n#### 0\n\n")
    assert model.asked[0].endswith("Answer:")
    assert row["documents"] == 3
    assert row["exact_match"] == pytest.approx(2 / 3)
    assert row["exact_match_stderr"] > 0
    assert row["tokens_per_evaluation"] == pytest.approx(2, abs=0.1)
    assert row["nfe_mean"] > 0
    assert row["seconds"] > 0
    assert row["tokens_per_second"] > 0
    assert model.settings[0]["max_new_tokens"] == 256
    assert model.settings[0]["temperature"] == 0


def test_math_compares_the_last_box(tmp_path: Path, data: Path):
    model = Scripted(tmp_path, lambda prompt: rf" So \boxed{{{2 * int(prompt.split()[2].strip('?'))}}}.")
    row = run(model, ["math500"], data, limit=3)["math500"]
    assert row["exact_match"] == 1.0
    assert row["documents"] == 3


def test_programs_are_run_against_the_tests(tmp_path: Path, data: Path):
    def answer(prompt: str) -> str:
        if "[BEGIN]" in prompt:
            number = int(prompt.rpartition("to add ")[2].split(".")[0])
            return f"def add(a):\n  return a + {number}\n[DONE] and more" if number != 12 else "nothing"
        number = int(prompt.split("add")[1].split("(")[0])
        return f"    return a + {number}\n\ndef other(): pass" if number else "    return None"

    model = Scripted(tmp_path, answer)
    rows = run(model, ["humaneval", "mbpp"], data)
    assert rows["humaneval"]["pass_at_1"] == pytest.approx(2 / 3)
    assert rows["mbpp"]["pass_at_1"] == pytest.approx(2 / 3)  # problems 11, 12 and 13
    asked = next(prompt for prompt in model.asked if "to add 11" in prompt)
    assert asked.count("[DONE]") == 3
    assert "to add 1." not in asked


def test_the_embedded_models_own_task_needs_no_files(tmp_path: Path):
    right = {one.prompt: one.answer for one in InstructionTask(kinds="sums").instructions("test", 5)}
    row = run(Scripted(tmp_path, lambda prompt: f" {right[prompt]} "), ["instructions"], None, limit=5)["instructions"]
    assert row["exact_match"] == 1.0
    assert row["documents"] == 5


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path, data: Path):
    store = tmp_path / "answers.jsonl"
    model = Scripted(tmp_path, lambda prompt: " #### 12")

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, ["gsm8k"], data, store=store, batch_size=2, on_answer=stop)
    with store.open("a") as stream:
        stream.write('{"key": "half a li')
    assert len(model.asked) == 2
    counted: list[int] = []
    resumed = run(model, ["gsm8k"], data, store=store, batch_size=2, on_answer=counted.append)["gsm8k"]
    assert len(model.asked) == 3
    assert sum(counted) == 3
    whole = run(Scripted(tmp_path, lambda prompt: " #### 12"), ["gsm8k"], data)["gsm8k"]
    for name in ("exact_match", "nfe_mean", "new_tokens_mean", "requests"):
        assert resumed[name] == whole[name]
    run(model, ["gsm8k"], data, store=store, seed=1)
    assert len(model.asked) == 6  # another seed, other answers
    run(model, ["gsm8k"], data, store=store, identity="other weights")
    assert len(model.asked) == 9


def test_settings_of_a_task_reach_the_model_or_are_refused(tmp_path: Path):
    from lm_eval.api.instance import Instance

    model = Scripted(tmp_path, lambda prompt: "x")
    own = UnmaskLM(model, EB, max_new_tokens=4, block_length=2)

    def ask(**asked: Any) -> list[str]:
        return own.generate_until([Instance("generate_until", {}, ("one", asked), 0, ("t", 0, 1))] * 2)

    ask(until=["\n", ""], do_sample=True, temperature=0.7, top_p=0.9)
    settings = model.settings[-1]
    assert settings["stop"] == ("\n",)
    assert (settings["temperature"], settings["top_p"], settings["top_k"]) == (0.7, 0.9, None)
    assert (settings["max_new_tokens"], settings["block_length"]) == (4, 2)
    assert len(set(settings["streams"])) == 2  # equal requests, different answers
    ask(until="\n", do_sample=False, temperature=0.7, top_p=0.9)
    assert (model.settings[-1]["temperature"], model.settings[-1]["top_p"]) == (0.0, None)
    with pytest.raises(ValueError, match="num_beams is not supported"):
        ask(until=[], num_beams=4)


def test_long_prompts_lose_their_beginning_and_are_counted(tmp_path: Path, data: Path):
    model = Scripted(tmp_path, lambda prompt: "", max_length=260)
    row = run(model, ["gsm8k"], data, limit=2)["gsm8k"]
    assert row["prompts_cut"] == 2
    assert model.asked[0] == "wer:"
    with pytest.raises(ValueError, match="no room for a prompt"):
        run(Scripted(tmp_path, lambda prompt: "", max_length=256), ["gsm8k"], data)


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (["gsm8k"], {}, "gsm8k reads gsm8k_test.jsonl and gsm8k_train.jsonl; give their folder with --data"),
        ([], {}, "name a task"),
        (["humaneval"], {"data": True}, "allow it with --run-code"),
        (["math500"], {"data": True, "shots": 2}, "no worked examples"),
        (["math500"], {"encoding": "latin-1"}, "math500 reads math500.jsonl; give their folder"),
        (["instructions"], {"encoding": "latin-1"}, "--encoding goes with --data FOLDER"),
        (["math500"], {"data": True, "encoding": "klingon"}, "unknown encoding 'klingon'"),
        (["math500"], {"data": True, "limit": 1, "chat": True}, None),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    tmp_path: Path, data: Path, tasks: list[str], settings: dict[str, Any], message: str | None
):
    given = {**settings, "data": data} if settings.pop("data", False) else settings
    own = UnmaskLM(Scripted(tmp_path, lambda prompt: ""), EB)
    if message is None:
        evaluate(own, tasks, **given)
        return
    with pytest.raises(ValueError, match=message):
        evaluate(own, tasks, **given)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, data: Path):
    own = UnmaskLM(Scripted(tmp_path, lambda prompt: ""), EB)
    with pytest.raises(DataError, match="there is no folder"):
        evaluate(own, ["gsm8k"], data=tmp_path / "nowhere")
    (data / "gsm8k_train.jsonl").unlink()
    with pytest.raises(DataError, match=r"there is no .*gsm8k_train.jsonl"):
        evaluate(own, ["gsm8k"], data=data)
    write(data / "math500.jsonl", [{"question": "?", "answer": "7"}])
    with pytest.raises(DataError, match="answer 1 has no"):
        evaluate(own, ["math500"], data=data)
    for text, message in (("{}\n", "line 1: there is no a"), ("\n[\n", "line 2: this is not JSON"), ("\n", "is empty")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            read_jsonl(tmp_path / "bad.jsonl", ["a"])


def test_files_are_read_in_the_encoding_that_is_given(tmp_path: Path, data: Path):
    path = data / "math500.jsonl"
    path.write_bytes(path.read_text(encoding="utf-8").replace("?", "¿").encode("latin-1"))
    model = Scripted(tmp_path, lambda prompt: "")
    with pytest.raises(DataError, match="not UTF-8 text"):
        evaluate(UnmaskLM(model, EB), ["math500"], data=data)
    evaluate(UnmaskLM(model, EB), ["math500"], data=data, encoding="latin-1")
    assert model.asked


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so 3 and 4.\n#### 1,234", 1, 1),
        ("#### $1234.00", 1, 1),
        ("the answer is 1234.", 0, 1),
        ("#### 1235", 0, 0),
        ("", 0, 0),
        ("#### 1234\n#### 5", 1, 0),
    ],
)
def test_numbers_are_compared_as_numbers(text: str, strict: int, flexible: int):
    doc = {"answer": "because\n#### 1234"}
    assert score_gsm8k(doc, [text]) == {"exact_match": strict, "flexible_match": flexible}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"\boxed{\frac{1}{2}}", 1),
        (r"first \boxed{3}, no: \boxed{\dfrac12}", 1),
        (r"\boxed{0.5}", 1),
        (r"\boxed{\frac{1}{3}}", 0),
        (r"\boxed{", 0),
        (r"\boxed 1", 0),
        ("1/2", 0),
    ],
)
def test_boxes_are_compared_as_latex(text: str, right: int):
    assert score_math({"answer": r"so $\boxed{\frac{1}{2}}$."}, [text]) == {"exact_match": right}


def test_programs_may_be_fenced_or_written_anew():
    doc = HUMAN[2]
    whole = "from typing import List\n\ndef add2(a):\n    return a + 2\n"
    for text in ("    return a + 2", f"Here:\n```python\n{whole}```\nDone.", whole, "```\n    return a + 2"):
        assert score_humaneval(doc, [text]) == {"pass_at_1": 1.0}
    for text in ("    return a", "```python\nnothing\n```", "", "    exit()", "    while True: pass"):
        assert score_humaneval(doc, [text]) == {"pass_at_1": 0.0}
    assert score_mbpp(MBPP[4], ["```python\ndef add(a):\n    return a + 5\n```"]) == {"pass_at_1": 1.0}
    assert score_mbpp(MBPP[4], ["def add(a): return 5"]) == {"pass_at_1": 0.0}

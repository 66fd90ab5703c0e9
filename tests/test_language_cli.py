import json
import subprocess
import sys

import pytest
from layouts import write_text_model
from test_cli import run
from typer.testing import CliRunner

import unmask
from unmask.cli import app
from unmask.cli.generate import ABLE, canvas, fit
from unmask.files.jsonl import read_prompts
from unmask.tasks.instructions import MASK_ID, encode


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("model"))


def test_generate_prints_one_object_per_prompt(folder, tmp_path):
    lines = ['{"prompt": "3+3="}', '"4+4="', "", '{"messages": [{"role": "user", "content": "5+5="}]}']
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    options = ["--rule", "topk", "--k", "2", "--max-new-tokens", "8", "--seed", "3", "--temperature", "1"]
    output = run(
        "generate",
        str(folder),
        "-p",
        "1+1=",
        "-p",
        "1+1=",
        "--input",
        str(tmp_path / "prompts.jsonl"),
        *options,
        "--json",
    )
    found = json.loads(output)
    shown = ["1+1=", "1+1=", "3+3=", "4+4=", "<|user|>5+5=<|assistant|>"]
    assert [one["prompt"] for one in found] == shown
    assert found[0]["stream"] != found[1]["stream"]
    assert {"prompt", "text", "nfe", "new_tokens", "seconds"} <= set(found[0])
    model = unmask.load(folder)
    again = model.generate("3+3=", rule="topk:k=2", max_new_tokens=8, seed=3, temperature=1.0)  # pyright: ignore
    assert found[2]["tokens"] == list(again[0].tokens)
    plain = run("generate", str(folder), "-p", "1+1=", "--max-new-tokens", "4", "--chat")
    assert "evaluations" in plain


def test_infill_keeps_the_text_around_the_gap(folder):
    (one,) = json.loads(run("infill", str(folder), "-t", "12+[MASK:2]=47", "--json"))
    assert one["text"][:3] == "12+"
    assert one["text"][5:] == "=47"
    assert one["new_tokens"] == 2


def test_chat_remembers_and_obeys(folder):
    said = (
        "1+1=\n"
        + "1+" * 200
        + "1=\n/gamma 0.5\n/gamma lots\n/rule topk:k=4\n/nothing\n2+2=\n/reset\n/quit\nnever read\n"
    )
    command = [sys.executable, "-m", "unmask", "chat", str(folder), "--max-new-tokens", "4"]
    result = subprocess.run(command, input=said, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "entropy-bound:gamma=0.5" in result.stdout
    assert "/gamma takes a number of nats, got 'lots'" in result.stdout
    assert "topk:k=4" in result.stdout
    assert "unknown command /nothing" in result.stdout
    assert "more than the" in result.stdout  # a line that does not fit is refused, and the chat goes on
    assert result.stdout.count(" evaluation") == 2


@pytest.mark.parametrize(
    ("model", "answers"),
    [
        ("chat", {"12+35=": "47", "What is 7 times 8?": "56"}),
        ("working", {"Ann has 7, buys 5, eats 3.": "7+5=12;12-3=9"}),
    ],
)
def test_a_chat_begins_with_what_the_model_is_able_to_do(model, answers):
    said = "".join(f"{asked}\n/reset\n" for asked in answers)
    result = CliRunner().invoke(app, ["chat", model], input=said)
    first, _, *rest = result.output.splitlines()
    assert first == ABLE[model]
    assert all(asked in first for asked in answers)
    assert [line for line in rest if line in answers.values()] == list(answers.values())


def test_only_embedded_models_are_described(folder):
    assert "tiny" not in CliRunner().invoke(app, ["chat", str(folder)], input="/quit\n").output


def test_a_chat_forgets_its_oldest_turns_first(folder):
    model = unmask.load(folder)
    history = [{"role": role, "content": "1234567890"} for role in ("user", "assistant") * 3][:5]
    assert fit(model, history, 8) == 2  # pyright: ignore[reportArgumentType]
    assert len(history) == 3
    assert history[0]["role"] == "user"


def test_a_canvas_shows_masks(folder):
    model = unmask.load(folder)
    assert canvas(model, [*encode("4"), MASK_ID, MASK_ID, *encode("7 ")]) == "4░░7 "  # pyright: ignore


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "{folder}"], "nothing to answer"),
        (["infill", "{folder}"], "nothing to fill in"),
        (["infill", "{folder}", "-t", "abc"], "has no gap"),
        (["generate", "{folder}", "-p", "1", "--rule", "nonsense"], "unknown rule"),
        (["generate", "{folder}", "-p", "1", "--k", "3"], "k does not apply"),
        (["generate", "{folder}", "-p", "1", "--block-length", "5"], "does not divide"),
        (["generate", "{folder}", "-p", "1" * 60], "more than the 64"),
        (["generate", "{folder}", "-p", "1", "--dtype", "int4"], "unknown dtype"),
        (["generate", "sudoku", "-p", "1"], "has no tokenizer"),
        (["generate", "nowhere/at-all", "-p", "1"], "no folder 'nowhere/at-all', and no such model was downloaded"),
    ],
)
def test_what_is_wrong_is_said(folder, arguments, words):
    with pytest.raises(ValueError, match=words):
        run(*[argument.format(folder=folder) for argument in arguments])


def test_bad_lines_of_prompts_are_named(tmp_path):
    path = tmp_path / "p.jsonl"
    for text, words in (('{"prompt": "a"}\nnonsense', "line 2: this is not JSON"), ('{"text": 3}', "line 1: expected")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_prompts(path, "prompt")

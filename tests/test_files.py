"""Files: read whatever their encoding, written so that nothing is lost; what cannot be done is said in one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.denoiser import NetworkDenoiser
from unmask.errors import DataError
from unmask.evaluation.store import Store
from unmask.files.jsonl import read_jsonl, read_prompts
from unmask.files.reading import read_lines, read_text, shown, split_lines
from unmask.files.tables import read_table
from unmask.files.writing import check_outputs, replacing, write_atomically, write_output
from unmask.tasks.prompt_folder import PromptFolder
from unmask.tasks.text import TextTask, embedded_text

TEXT = "one\ntwo ü ∞\n\nfour\u2028still four\x85\x0c\n"
ENCODED = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "utf-16 with a mark": TEXT.encode("utf-16"),
    "utf-16 big-endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-32": TEXT.encode("utf-32"),
    "gzip": gzip.compress(TEXT.encode()),
    "gzip of utf-16": gzip.compress(TEXT.encode("utf-16")),
    "Windows": TEXT.replace("\n", "\r\n").encode(),
    "old Mac": TEXT.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_a_text_is_the_same_however_it_is_stored(kind: str, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(ENCODED[kind])
    assert read_text(path) == TEXT
    lines = list(read_lines(path))
    assert [line.text for line in lines] == ["one", "two ü ∞", "", "four\u2028still four\x85\x0c"] == split_lines(TEXT)
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert not any(line.fault for line in lines)


def test_bytes_of_another_encoding_name_their_line(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes("one\ncafé\nthree\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text: byte 0xe9 in line 2; .* --encoding latin-1"):
        read_text(path)
    assert [bool(line.fault) for line in read_lines(path)] == [False, True, False]
    assert read_text(path, encoding="latin-1") == "one\ncafé\nthree\n"
    assert [line.text for line in read_lines(path, encoding="cp1252")] == ["one", "café", "three"]
    with pytest.raises(ValueError, match="unknown encoding 'klingon'; usual ones are"):
        read_text(path, encoding="klingon")
    with pytest.raises(ValueError, match="unknown encoding 'base64'"):
        read_text(path, encoding="base64")
    path.write_bytes("ü".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="is not UTF-16 text"):
        read_text(path)


def test_pipes_and_standard_input_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(
        [sys.executable, "-c", f"open({str(pipe)!r}, 'wb').write({gzip.compress(TEXT.encode())!r})"]
    )
    assert [line.text for line in read_lines(pipe)] == split_lines(TEXT)
    assert writer.wait(20) == 0
    for read in (lambda: read_text("-"), lambda: "".join(line.text + "\n" for line in read_lines(Path("-")))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode("utf-16"))))
        assert read() == TEXT


def test_what_the_system_says_is_made_plain(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"cannot read the file .*: it is a folder; name one of its files: a\.txt"):
        read_text(tmp_path)
    with pytest.raises(DataError, match="No such file or directory; check the name"):
        read_text(tmp_path / "none")
    with pytest.raises(DataError, match="a part of the path is a file, not a folder"):
        read_text(tmp_path / "a.txt" / "b")
    with pytest.raises(DataError, match="File name too long"):
        read_text(tmp_path / ("x" * 300))
    for path, words in ((tmp_path, "Is a directory; name a file, not a folder"), (tmp_path / "none", "check the name")):
        with pytest.raises(OSError, match="Errno") as caught:
            path.read_bytes()
        assert shown(caught.value) == f"{path}: {words}" or shown(caught.value).endswith(words)
        assert "Errno" not in shown(caught.value)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    path.chmod(0o640)
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text() == "old"
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    write_output(link, "new ü")
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8") == "new ü"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    write_output(tmp_path / "out.csv.gz", "packed")
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == b"packed"
    write_atomically(Path(os.devnull), b"gone")
    assert not Path(os.devnull).is_file()
    with pytest.raises(ValueError, match=r"cannot write .*: No such file or directory"):
        write_output(tmp_path / "none" / "x", "text")


def test_outputs_are_checked_before_the_work(tmp_path: Path):
    given = tmp_path / "in.csv"
    given.write_text("x")
    (tmp_path / "link.csv").symlink_to(given)
    os.link(given, tmp_path / "hard.csv")
    out = tmp_path / "out.csv"
    for outputs, words in [
        ({"--output": given}, "--output .*in.csv is a file that is read"),
        ({"--output": tmp_path / "link.csv"}, "is a file that is read"),
        ({"--output": tmp_path / "hard.csv"}, "is a file that is read"),
        ({"--output": tmp_path / "." / "in.csv"}, "is a file that is read"),
        ({"--output": tmp_path}, "it is a folder; name a file in it"),
        ({"--output": given / "out.csv"}, "in.csv is a file, not a folder"),
        ({"--output": tmp_path / "none" / "out.csv"}, r"there is no such folder as .*none; make it first \(mkdir -p"),
        ({"--output": out, "--rejected": tmp_path / "." / "out.csv"}, "--output and --rejected name the same file"),
    ]:
        with pytest.raises(ValueError, match=words):
            check_outputs(outputs, [given, None, "-"])
    assert given.read_text() == "x"
    assert not out.exists()
    check_outputs({"--output": out, "--rejected": None}, [given])
    check_outputs({"--a": Path(os.devnull), "--b": Path(os.devnull)}, [given])
    check_outputs({"--out": tmp_path / "none" / "out.jsonl"}, made=("--out",))


def test_a_store_is_not_appended_to_another_file(tmp_path: Path):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"is not a file of results .* it holds 'a,b'"):
        Store(path)
    assert path.read_text() == "a,b\n1,2\n"
    for half in ('{"k', '{"key": "a", "val'):
        path.write_text(half)
        Store(path)["b"] = [1, "\u2028"]
        assert Store(path)["b"] == [1, "\u2028"]


ROWS = [
    ('{"prompt": "a\u2028b"}', None, "a\u2028b"),
    ('"a text itself"', None, "a text itself"),
    ('{"messages": [{"role": "user", "content": "hi"}]}', None, [{"role": "user", "content": "hi"}]),
    ('{"question": "1 + 1?", "answer": "2"}', "question", "1 + 1?"),
    ('{"instruction": "Add.", "input": "1 1", "output": "2"}', "instruction,input", "Add.\n\n1 1"),
    ('{"instruction": "Say hi.", "input": "", "output": "hi"}', "instruction,input", "Say hi."),
    ('{"instruction": "Say hi."}', "instruction,input", "Say hi."),
    ('{"question_id": 81, "turns": ["first", "second"]}', "turns.0", "first"),
    ('{"question_id": 81, "turns": ["only"]}', "turns", "only"),
    (
        '{"body": {"messages": [{"role": "user", "content": "hi"}]}}',
        "body.messages",
        [{"role": "user", "content": "hi"}],
    ),
    ('{"a.b": "dotted"}', "a.b", "dotted"),
]


@pytest.mark.parametrize(("line", "field", "expected"), ROWS)
def test_prompts_of_published_sets_are_found(line: str, field: str | None, expected: Any, tmp_path: Path):
    path = tmp_path / "p.jsonl"
    for content in (
        f"\ufeff{line}\r\n\n{line}".encode(),
        f"{line}\n{line}\n".encode("utf-16"),
        gzip.compress(f"{line}\n{line}".encode()),
        f"[\n  {line},\n  {line}\n]".encode(),
    ):
        path.write_bytes(content)
        assert read_prompts(path, "prompt", field) == [expected, expected]


def test_bad_prompts_name_their_line_and_what_would_work(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    good = '{"prompt": "a"}\n'
    for text, field, words in [
        (good + "nonsense", None, r"line 2: this is not JSON .*'nonsense'; each line is one value"),
        ('{"question": "1", "answer": "2"}', None, "line 1: expected .* it has question, answer; .* --field question"),
        ('{"question": "1"}', "quest", "line 1: there is no field 'quest': it has question"),
        ('{"turns": ["a", "b"]}', "turns", "turns holds 2 texts; choose one of them, such as --field turns.0"),
        ('{"prompt": 3}', None, "line 1: prompt must be a text, or a chat .*, got 3"),
        ('{"messages": [{"from": "human", "value": "x"}]}', None, "message 0 of messages must be"),
        ('{"prompt": "\\ud800"}', None, r"line 1: it holds \\ud800, half of a character"),
        ("[" * 100_000, None, "line 1: the JSON is nested too deeply"),
        ("9" * 5000, None, "line 1: this is not JSON"),
        (good + "[1]", None, "line 2: expected"),
        ("\n\n", None, "holds no prompts"),
        (good, " ,", "--field must name fields"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=words) as caught:
            read_prompts(path, "prompt", field)
        assert "\n" not in str(caught.value)
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match="byte 0xe9 in line 2"):
        read_prompts(path, "prompt")
    assert read_prompts(path, "prompt", encoding="latin-1") == ["a", "café"]
    with pytest.raises(DataError, match="it is a folder"):
        list(read_jsonl(tmp_path))


def test_tables_are_read_with_any_delimiter(tmp_path: Path):
    path = tmp_path / "t.csv"
    for delimiter in ",;\t|":
        path.write_text(f'N{delimiter} Maze \n1{delimiter}"a{delimiter}b"\n\n2{delimiter}"c\nd"\n')
        assert list(read_table(path, ("maze",))) == [
            (2, {"n": "1", "maze": f"a{delimiter}b"}),
            (5, {"n": "2", "maze": "c\nd"}),
        ]
    for text, words in [
        ("", "column 'maze'"),
        ("a,b\n", "column 'maze', got 'a,b'"),
        ("maze,b\n1\n", "line 2: 1 fields where the header has 2"),
        ('maze\n"a', "line 2: unexpected end of data"),
        ("maze\n" + "x" * 200_000, "line 2: field larger"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            list(read_table(path, ("maze",)))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "messages", "turns", "role", "content", "x"]) | st.text(), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def check_prompts(path: Path, lines: list[Any], text: str, place: int, field: str | None, encoding: str) -> None:
    """Reads a file made of values and some text; what comes back are prompts, or one line of a refusal."""
    content = "\n".join(json.dumps(line, ensure_ascii=place % 2 == 0) for line in lines)
    content = content[:place] + text + content[place:]
    path.write_bytes(content.encode(encoding, errors="replace"))
    try:
        prompts = read_prompts(path, "prompt", field)
    except ValueError as error:
        refusal, prompts = str(error), []
    else:
        refusal = ""
    assert len(refusal.splitlines()) == bool(refusal)
    assert bool(refusal) != bool(prompts)
    for prompt in prompts:
        if isinstance(prompt, list):
            assert prompt
            assert all(isinstance(one["role"], str) and isinstance(one["content"], str) for one in prompt)
        json.dumps(prompt, ensure_ascii=False).encode()


SHORT = TextTask(length=16, vocabulary="".join(sorted(set(embedded_text()) | set("[]:"))))


def any_denoiser() -> NetworkDenoiser:
    """A denoiser that nobody asks."""
    return NetworkDenoiser(torch.nn.Identity(), SHORT.vocab_size, SHORT.mask_id)


ANY_PROMPTS = {
    "lines": st.lists(JSON, max_size=4),
    "text": st.just("") | st.text(max_size=8),
    "place": st.integers(0, 60),
    "field": st.sampled_from([None, "turns.0", "prompt,x", "x", "messages.0.content"]),
    "encoding": st.sampled_from(["utf-8", "utf-16", "utf-32", "latin-1"]),
}


@given(**ANY_PROMPTS)
def test_any_prompts_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, **given_: Any):
    check_prompts(tmp_path_factory.getbasetemp() / "fuzz.jsonl", **given_)


@given(text=st.text() | st.text("ab □[MASK:]12\n\r"), encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]))
def test_any_text_with_gaps_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str
):
    path = tmp_path_factory.getbasetemp() / "gaps" / "one.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(("a" * max(0, 15 - len(text)) + text + "[MASK:2]").encode(encoding, errors="replace"))
    try:
        rows = PromptFolder(path.parent, any_denoiser(), SHORT).rows
    except DataError as error:
        refusal, rows = str(error), None
    else:
        refusal = ""
    assert len(refusal.splitlines()) == bool(refusal)
    assert rows is None or (rows.shape == (1, 16) and bool((rows == SHORT.mask_id).any()))


@pytest.mark.slow
@settings(max_examples=5_000)
@given(**ANY_PROMPTS)
def test_many_prompts_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, **given_: Any):
    check_prompts(tmp_path_factory.getbasetemp() / "fuzz.jsonl", **given_)

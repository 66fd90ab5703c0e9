from __future__ import annotations

import gzip
import hashlib
import math
import pickle
from pathlib import Path

import pytest
import torch

from unmask.errors import DataError
from unmask.tasks.named import named_task
from unmask.tasks.task import Prompts, Task
from unmask.tasks.text import TextTask, distinct_n, embedded_text, encode, read_text, unigram_entropy

LINES = "".join(f"{number} the cat sat on the mat.\n" for number in range(400))


@pytest.fixture(scope="module")
def shakespeare() -> TextTask:
    return TextTask()


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    path = tmp_path / "cats.txt"
    path.write_text(LINES)
    return path


def test_the_embedded_texts_are_those_the_readme_names(shakespeare: TextTask):
    readme = (Path(__file__).parent.parent / "unmask" / "data" / "text" / "README.md").read_text()
    for name in ("tinyshakespeare", "moby_dick", "pride_and_prejudice"):
        text = embedded_text(name)
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{name}"))
        assert f"{len(text):,}" in row
        assert hashlib.sha256(text.encode()).hexdigest() in row
    text = embedded_text()
    assert isinstance(shakespeare, Task)
    assert (shakespeare.vocab_size, shakespeare.mask_id, shakespeare.length) == (66, 65, 128)
    assert shakespeare.vocabulary == "".join(sorted(set(text)))


def test_splits_are_contiguous_and_share_no_character(shakespeare: TextTask):
    shown = {split: shakespeare.show(part) for split, part in shakespeare.tokens.items()}
    assert shown["train"] + shown["validation"] + shown["test"] == embedded_text()
    assert [len(part) for part in shown.values()] == [1_003_855, 55_769, 55_770]
    for split in ("validation", "test"):
        windows = shakespeare.examples(split)
        assert len(windows) == len(shown[split]) // 128
        starts = sorted(windows.order)
        assert starts == list(range(len(windows)))
        index = windows.order.index(3)
        assert shakespeare.show(windows[index][0]) == shown[split][3 * 128 : 4 * 128]
        assert windows.order != starts


def test_training_windows_are_a_function_of_seed_and_index(shakespeare: TextTask):
    windows = shakespeare.examples("train")
    assert len(windows) == 2**31
    text = shakespeare.show(shakespeare.tokens["train"])
    for index in (0, 1, 7, 2**31 - 1):
        tokens, maskable = windows[index]
        assert (tokens.shape, tokens.dtype, bool(maskable.all())) == ((128,), torch.int64, True)
        assert shakespeare.show(tokens) in text
        assert torch.equal(tokens, pickle.loads(pickle.dumps(windows))[index][0])
    assert torch.equal(windows[-1][0], windows[2**31 - 1][0])
    assert not torch.equal(windows[0][0], TextTask(seed=1).examples("train")[0][0])
    with pytest.raises(IndexError, match="2147483648"):
        windows[2**31]
    # Offsets reach both ends of the range.
    small = TextTask(length=1000)
    offsets = {int(small.examples("train")[index][0][:50].float().mean() * 1e6) for index in range(200)}
    assert len(offsets) > 150


def test_every_offset_of_a_short_range_is_drawn(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(0x4E00 + number) for number in range(40)))
    windows = TextTask(path, length=2, gaps="free").examples("train")
    starts = [int(windows[index][0][0]) for index in range(1000)]
    counts = torch.bincount(torch.tensor(starts))
    assert len(counts) == 35
    # 1,000 draws over 35 offsets: a mean of 28.6, and 60 is beyond one chance in a million for each.
    assert counts.min() > 5
    assert counts.max() < 60


def test_gaps_are_short_and_apart_and_make_up_the_share(shakespeare: TextTask):
    prompts = shakespeare.prompts("test", 50)
    masked = prompts.tokens == shakespeare.mask_id
    assert masked.sum(1).tolist() == [32] * 50
    for row in masked.tolist():
        runs = "".join("x" if cell else " " for cell in row).split()
        assert [len(run) for run in runs] == [4] * 8
    assert torch.equal(prompts.tokens[~masked], prompts.answers[~masked])
    assert torch.equal(prompts.tokens, shakespeare.prompts("test", 80).tokens[:50])
    assert not torch.equal(masked[0], masked[1])
    everything = shakespeare.prompts("test", 10_000)
    assert len(everything) == len(shakespeare.examples("test"))
    tight = TextTask(length=8, span=1, share=0.5).prompts("validation", 20)
    assert ((tight.tokens == 65).sum(1) == 4).all()


def test_infilling_counts_the_masked_characters_that_come_back(shakespeare: TextTask):
    prompts = shakespeare.prompts("validation", 3)
    assert shakespeare.score(prompts, prompts.answers).tolist() == [1.0] * 3
    assert shakespeare.score(prompts, prompts.tokens).tolist() == [0.0] * 3
    tokens = prompts.answers.clone()
    where = (prompts.tokens[1] == shakespeare.mask_id).nonzero().flatten()[:8]
    tokens[1, where] = (tokens[1, where] + 1) % 65
    assert shakespeare.score(prompts, tokens).tolist() == [1.0, 24 / 32, 1.0]


def test_free_text_counts_the_letters_in_known_words(cats: Path):
    task = TextTask(cats, gaps="free", length=20)
    prompts = task.prompts("test", 4)
    assert (prompts.tokens == task.mask_id).all()
    rows = [". the cat sat on mat", "1 tee cat. the mat\n\n", "." * 20, "cat the mat on the e"]
    tokens = torch.stack([encode(row, task.vocabulary).long() for row in rows])
    # The last word of the first row touches the edge; "tee" is no word; no words are worth nothing.
    scores = task.score(Prompts(prompts.tokens, tokens), tokens)
    assert scores.tolist() == pytest.approx([1.0, 9 / 12, 0.0, 1.0])
    real = TextTask(gaps="free")
    held_out = real.prompts("test", 100)
    assert real.score(held_out, held_out.answers).mean() > 0.85


def test_another_text_is_the_test_split(cats: Path, tmp_path: Path):
    other = tmp_path / "dogs.txt"
    other.write_text("the dog sat.\n" * 20)
    task = TextTask(cats, test_data=other, length=16)
    assert task.show(task.tokens["test"]) == other.read_text()
    assert task.show(task.tokens["train"]) + task.show(task.tokens["validation"]) == LINES
    assert "g" in task.vocabulary
    fixed = TextTask(cats, vocabulary=task.vocabulary, length=16)
    assert fixed.vocab_size == task.vocab_size


def test_texts_are_read_gzipped_with_any_line_ends(tmp_path: Path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode())
    assert read_text(tmp_path / "a.gz") == read_text(tmp_path / "b.txt") == LINES


def test_a_text_in_another_encoding_is_read_if_it_is_said(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes((LINES + "café\n").encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 0xe9 in line \d+; .*encoding=latin-1"):
        TextTask(path)
    task = named_task("text", data=str(path), length=16, encoding="latin-1")
    assert isinstance(task, TextTask)
    assert "é" in task.vocabulary
    path.write_bytes((LINES + "café\n").encode("utf-16"))
    assert TextTask(path, length=16).vocabulary == task.vocabulary
    with pytest.raises(ValueError, match="unknown encoding 'klingon'"):
        TextTask(path, encoding="klingon")


def test_bad_texts_and_settings_say_what_is_wrong(cats: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read the text .*none.txt: No such file"):
        TextTask(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot read"):
        TextTask(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="does not hold any text"):
        TextTask(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"not UTF-8 text: byte 0xe9 in line 3"):
        TextTask(tmp_path / "latin.txt")
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(LINES.encode())[:-20])
    with pytest.raises(DataError, match="damaged gzip"):
        TextTask(tmp_path / "damaged.gz")
    with pytest.raises(DataError, match=r"validation split has \d+ tokens, fewer than one window of 1000"):
        TextTask(cats, length=1000)
    with pytest.raises(DataError, match=r"outside the vocabulary of 3: '\\n' \(line 1\), ' ' \(line 1\).* more"):
        TextTask(cats, vocabulary="abc")
    other = tmp_path / "other.txt"
    other.write_text(LINES + "a dog")
    with pytest.raises(DataError, match=r"other.txt has .* vocabulary of \d+: 'd' \(line 401\), 'g' \(line 401\)$"):
        TextTask(cats, test_data=other, vocabulary=TextTask(cats).vocabulary)
    with pytest.raises(DataError, match=r"other.txt has .*: 'd' \(line 401\), 'g' \(line 401\)$"):
        TextTask(other, vocabulary=TextTask(cats).vocabulary)
    for settings, message in [
        ({"length": 1}, "length must be a whole number >= 2, got 1"),
        ({"length": 64.0}, "length"),
        ({"span": 0}, "span"),
        ({"seed": -1}, "seed"),
        ({"gaps": "both"}, "unknown gaps 'both'; choose one of infill, free"),
        ({"share": 0}, "share must be above 0"),
        ({"share": float("nan")}, "share must be above 0"),
        ({"share": 0.9, "span": 1}, "do not fit"),
        ({"length": 8, "span": 8}, "do not fit"),
        ({"vocabulary": "aab"}, "each once"),
        ({"vocabulary": ""}, "each once"),
        ({"vocabulary": "ab", "level": "subword"}, "does not apply to level=subword"),
        ({"level": "word"}, "unknown level 'word'; choose one of character, subword"),
    ]:
        with pytest.raises(ValueError, match=message):
            TextTask(**settings)
    task = TextTask(cats, length=16)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        task.examples("dev")
    with pytest.raises(ValueError, match="limit"):
        task.prompts("test", 0)


def test_subwords_of_the_novels():
    task = TextTask(level="subword", gaps="free")
    assert (task.vocab_size, task.mask_id, task.vocabulary) == (513, 512, "")
    novels = [embedded_text("moby_dick"), embedded_text("pride_and_prejudice")]
    assert task.show(task.tokens["test"]) == "".join(novel[round(0.95 * len(novel)) :] for novel in novels)
    assert task.show(task.tokens["train"]) == "".join(novel[: round(0.9 * len(novel))] for novel in novels)
    held_out = task.prompts("test", 50)
    assert task.show(held_out.tokens[0]) == "□" * 128
    assert task.score(held_out, held_out.answers).mean() > 0.85


def test_subwords_of_another_text(cats: Path, tmp_path: Path):
    path = tmp_path / "strange.txt"
    path.write_text("naïve 数学 🙂 " * 40)
    task = TextTask(cats, level="subword", test_data=path, length=16)
    assert task.show(task.tokens["test"]) == path.read_text()
    assert task.show(torch.tensor([task.mask_id, int(task.tokens["test"][0])])).startswith("□")
    prompts = task.prompts("test", 20)
    assert (prompts.tokens == task.mask_id).sum(1).tolist() == [4] * len(prompts)
    assert task.show(prompts.tokens[0]).count("□") == 4
    assert task.score(prompts, prompts.answers).tolist() == [1.0] * len(prompts)
    assert task.score(prompts, prompts.tokens).tolist() == [0.0] * len(prompts)


@pytest.mark.slow
def test_the_tokenizer_is_the_one_trained_on_the_novels():
    from unmask.tasks import _subwords

    novels = [embedded_text("moby_dick"), embedded_text("pride_and_prejudice")]
    again = _subwords.train(novel[: round(0.9 * len(novel))] for novel in novels)
    assert again.to_str() == _subwords.embedded().to_str()
    assert again.get_vocab_size() == _subwords.PIECES


def test_entropy_and_distinct_n_of_samples():
    tokens = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 1]])
    assert unigram_entropy(tokens).tolist() == pytest.approx([0, math.log(4), math.log(2), math.log(2)])
    assert distinct_n(tokens, 1).tolist() == [1 / 4, 1, 1 / 2, 1 / 2]
    assert distinct_n(tokens, 2).tolist() == pytest.approx([1 / 3, 1, 1, 2 / 3])
    assert distinct_n(tokens, 4).tolist() == [1] * 4
    for n in (0, 5):
        with pytest.raises(ValueError, match="n must be a whole number from 1 to 4"):
            distinct_n(tokens, n)

"""Text by characters or by subwords: windows for training, infilling, free generation, and measures of samples.

A text is split into contiguous ranges: the first 90 % are for training, the next 5 % for validation, and the last 5 %
for testing, so that no character is in two splits. A training example is a window at a random offset; validation and
test windows do not overlap.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib import resources
from itertools import groupby, pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..draws.streams import derive
from ..errors import DataError
from ..files import reading
from ._common import ENDLESS, MASK_SIGN, SPLITS, Draws, check_index, check_split, gaps, recovered
from .task import Prompts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GRAM = 4
"""The n of distinct-n."""

_VALIDATION, _TEST = 0.90, 0.95
_WORDS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def read_text(path: Path, encoding: str | None = None) -> str:
    """Reads a text file, gzipped or not; a byte order mark is dropped and line ends become `\\n`.

    Args:
        path: The file.
        encoding: The encoding of the file; default: the one that it declares, or else UTF-8 (see
            `unmask.files.reading.read_text`).

    Raises:
        DataError: If the file cannot be read, is empty or in another encoding; the message names the line.
        ValueError: If there is no such encoding.
    """
    text = reading.read_text(path, "the text", encoding)
    if not text.strip():
        raise DataError(f"{path} does not hold any text")
    return text


def embedded_text(name: Literal["tinyshakespeare", "moby_dick", "pride_and_prejudice"] = "tinyshakespeare") -> str:
    """Returns a public domain text that ships with the package: Tiny Shakespeare, or one of two novels."""
    file = resources.files("unmask").joinpath(f"data/text/{name}.txt.gz")
    return reading.decode(file.read_bytes(), f"the embedded {name}")


def encode(text: str, vocabulary: str) -> Int[Tensor, " characters"]:
    """Returns the index of every character in the vocabulary, which must contain all of them."""
    ids = {character: index for index, character in enumerate(vocabulary)}
    return torch.tensor([ids[character] for character in text], dtype=torch.int32)


def check_characters(text: str, vocabulary: str, name: str) -> None:
    """Checks that a vocabulary has all characters of a text.

    Args:
        text: The text.
        vocabulary: The characters.
        name: What the message calls the text.

    Raises:
        DataError: If some are missing. The message names the first few of them, and the line of each.
    """
    strange = sorted(set(text) - set(vocabulary))
    if strange:
        shown = ", ".join(f"{c!r} (line {text.count(chr(10), 0, text.index(c)) + 1})" for c in strange[:5])
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise DataError(f"{name} has characters outside the vocabulary of {len(vocabulary)}: {shown}{more}")


class Windows:
    """Windows of a range of text, at random offsets or without overlap; every position may be masked.

    A window at a random offset is a function of (seed, index). Windows without overlap are in a fixed random order, so
    that the first few are a fair sample of the range; a remainder shorter than a window is left out.

    Args:
        tokens: The tokens of the range.
        length: Tokens per window.
        seed: The seed of random offsets.
        random: Whether the windows are at random offsets.
    """

    def __init__(self, tokens: Int[Tensor, " tokens"], length: int, seed: int, random: bool) -> None:
        self.tokens, self.length, self.seed, self.random = tokens, length, seed, random
        count = len(tokens) // length
        self.order = [] if random else sorted(range(count), key=lambda window: derive(0, "text window", window))

    def __len__(self) -> int:
        return ENDLESS if self.random else len(self.order)

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        index = check_index(index, len(self))
        if self.random:
            start = Draws(self.seed, "text", index).below(len(self.tokens) - self.length + 1)
        else:
            start = self.order[index] * self.length
        window = self.tokens[start : start + self.length].long()
        return window, torch.ones(self.length, dtype=torch.bool)


class TextTask:
    """Text: fill short gaps, or generate freely.

    By *characters*, a token id is the index of a character in the vocabulary, which holds the characters of the text in
    sorted order. By *subwords*, the vocabulary is a byte-level byte-pair encoding trained on two novels: 512 tokens, of
    about 2 characters each in these novels; it can encode any text. The mask token has the last id.

    *Infilling* (the default) masks gaps of `span` tokens until `share` of the window is masked. Their positions are a
    function of (split, index), and at least one shown token is between any two of them. The score is the share of
    masked tokens that are recovered. *Free* prompts are entirely masked. Their score is the share of letters that are
    in words of the training text, ignoring case. Words at the edges, which may be cut off, are not counted; if there
    are no other words, the score is 0. Repeating one common word would score well, so read this score together with
    `unigram_entropy` and `distinct_n`.

    Args:
        data: A text file, gzipped or not; default: an embedded text. By characters this is Tiny Shakespeare, by
            subwords Moby-Dick and Pride and Prejudice, each of which is divided into the splits.
        level: `"character"` or `"subword"`.
        test_data: Another text file, which becomes the whole test split; the first 95 % of `data` are then for training
            and the rest for validation.
        length: Tokens per window.
        gaps: `"infill"` or `"free"`.
        span: Tokens per gap.
        share: The share of a window that infilling masks, rounded to whole gaps, but at least one gap.
        vocabulary: The characters, in the order of their ids, of a model that was trained before; default: those of the
            texts, sorted. It does not apply to subwords.
        seed: The seed of the training windows.
        encoding: The encoding of `data` and `test_data`; default: the one that the files declare, or else UTF-8.

    Raises:
        ImportError: By subwords, if tokenizers is not installed.
        ValueError: If a setting is out of range, or the gaps do not fit into a window.
        DataError: If a text cannot be read, is too short for a window in each split, or has a character outside the
            vocabulary.
    """

    name = "text"

    def __init__(
        self,
        data: Path | str | None = None,
        *,
        level: Literal["character", "subword"] = "character",
        test_data: Path | str | None = None,
        length: int = 128,
        gaps: Literal["infill", "free"] = "infill",
        span: int = 4,
        share: float = 0.25,
        vocabulary: str | None = None,
        seed: int = 0,
        encoding: str | None = None,
    ) -> None:
        self.length = whole("length", length, 2)
        self.span = whole("span", span, 1)
        self.seed = whole("seed", seed, 0)
        if gaps not in ("infill", "free"):
            raise ValueError(f"unknown gaps {gaps!r}; choose one of infill, free")
        if level not in ("character", "subword"):
            raise ValueError(f"unknown level {level!r}; choose one of character, subword")
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {share!r}")
        self.gaps, self.share, self.level = gaps, share, level
        self.gap_count = max(1, round(share * length / span))
        if gaps == "infill" and self.gap_count * (span + 1) - 1 > length - 1:
            raise ValueError(
                f"{self.gap_count} gaps of {span} with a shown token between any two do not fit into a window of "
                f"{length}; lower share or span"
            )
        texts = _texts(data, level, encoding)
        other = None if test_data is None else read_text(Path(test_data), encoding)
        self.vocabulary = "" if level == "subword" else "".join(sorted(set("".join(texts) + (other or ""))))
        if vocabulary is not None:
            if level == "subword":
                raise ValueError("a vocabulary of characters does not apply to level=subword")
            if len(set(vocabulary)) != len(vocabulary) or not vocabulary:
                raise ValueError("the vocabulary must be characters, each once")
            self.vocabulary = vocabulary
        self.mask_id = _subwords().PIECES if level == "subword" else len(self.vocabulary)
        self.vocab_size = self.mask_id + 1
        self.quality = f"share of masked {level}s recovered" if gaps == "infill" else "share of letters in known words"
        if level == "character":
            for text in texts:
                check_characters(text, self.vocabulary, "the embedded text" if data is None else str(data))
            check_characters(other or "", self.vocabulary, str(test_data))
        parts: dict[str, list[Tensor]] = {split: [] for split in SPLITS}
        bounds = (0, _VALIDATION, _TEST, 1) if other is None else (0, _TEST, 1)
        for text in texts:
            places = [round(bound * len(text)) for bound in bounds]
            for split, (begin, end) in zip(SPLITS, pairwise(places), strict=False):
                parts[split].append(self._encode(text[begin:end]))
        if other is not None:
            parts["test"].append(self._encode(other))
        self.tokens = {split: torch.cat(pieces) for split, pieces in parts.items()}
        for split, part in self.tokens.items():
            if len(part) < length:
                raise DataError(
                    f"the {split} split has {len(part)} tokens, fewer than one window of {length}; "
                    "give a longer text or a smaller length"
                )

    def _encode(self, text: str) -> Int[Tensor, " tokens"]:
        if self.level == "subword":
            return torch.tensor(self.tokenizer.encode(text).ids, dtype=torch.int32)
        return encode(text, self.vocabulary)

    def tokens_of(self, text: str, name: str) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: The text.
            name: What the message calls the text.

        Raises:
            DataError: If the text has a character outside the vocabulary.
        """
        if self.level == "character":
            check_characters(text, self.vocabulary, name)
        return self._encode(text).tolist()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The subword tokenizer."""
        return _subwords().embedded()

    def examples(self, split: str) -> Windows:
        """Returns the windows of a split: `2**31` at random offsets for training, and otherwise all without overlap."""
        return Windows(self.tokens[check_split(split)], self.length, self.seed, random=split == "train")

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` windows of a split, with gaps or entirely masked.

        Raises:
            ValueError: If there is no such split, or `limit` is below 1.
        """
        windows = self.examples(split)
        count = min(whole("limit", limit, 1), len(windows))
        answers = torch.stack([windows[index][0] for index in range(count)])
        masked = torch.ones_like(answers, dtype=torch.bool)
        if self.gaps == "infill":
            draws = [Draws(0, "text gaps", split, index) for index in range(count)]
            masked = torch.stack([gaps(self.length, self.gap_count, self.span, one) for one in draws])
        return Prompts.of(answers, masked, self.mask_id)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns the score of each prompt, as the class describes it; a remaining mask counts as wrong."""
        if self.gaps == "infill":
            return recovered(prompts, tokens, self.mask_id)
        return torch.tensor([self._known_letters(self.show(row)) for row in tokens], dtype=torch.float64)

    def measures(self, tokens: Int[Tensor, "samples length"]) -> dict[str, Float[Tensor, " samples"]]:
        """Returns `entropy` (see `unigram_entropy`, in nats) and `distinct_n` (see the function, for 4-grams) of
        samples.

        No single number tells how good a text is; `unmask.evaluation.measures` has measures that use a model.
        """
        return {"entropy": unigram_entropy(tokens), "distinct_n": distinct_n(tokens, GRAM)}

    @cached_property
    def known_words(self) -> frozenset[str]:
        """The words of the training text, in lower case."""
        return frozenset(_WORDS.findall(self.show(self.tokens["train"]).lower()))

    def _known_letters(self, text: str) -> float:
        text = text.lower()
        words = [match for match in _WORDS.finditer(text) if match.start() > 0 and match.end() < len(text)]
        total = sum(len(word.group()) for word in words)
        known = sum(len(word.group()) for word in words if word.group() in self.known_words)
        return known / total if total else 0.0

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Returns the text, with `□` for a mask and `�` for bytes that are not a character."""
        if self.level == "character":
            characters = self.vocabulary + MASK_SIGN
            return "".join([characters[token] for token in tokens.tolist()])
        runs = groupby(tokens.tolist(), key=lambda token: token == self.mask_id)
        return "".join(MASK_SIGN * len([*run]) if masked else self.tokenizer.decode([*run]) for masked, run in runs)


def _subwords() -> ModuleType:
    try:
        from . import _subwords as subwords
    except ImportError as error:
        raise ImportError(
            f'text by subwords needs tokenizers, which could not be imported ({error}): pip install "unmask[train]"'
        ) from error
    return subwords


def _texts(data: Path | str | None, level: str, encoding: str | None) -> list[str]:
    if data is not None:
        return [read_text(Path(data), encoding)]
    if level == "subword":
        return [embedded_text("moby_dick"), embedded_text("pride_and_prejudice")]
    return [embedded_text()]


def unigram_entropy(tokens: Int[Tensor, "samples length"]) -> Float[Tensor, " samples"]:
    """Returns the entropy of the token frequencies within each sample, in nats.

    It falls when a sampler loses diversity, although generative perplexity then seems better (arXiv:2409.02908).
    """
    counts = torch.zeros(len(tokens), int(tokens.max()) + 1, dtype=torch.float64)
    counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=torch.float64))
    return torch.special.entr(counts / tokens.shape[1]).sum(1)


def distinct_n(tokens: Int[Tensor, "samples length"], n: int) -> Float[Tensor, " samples"]:
    """Returns the number of different n-grams within each sample, divided by the number of all its n-grams.

    Raises:
        ValueError: If `n` is below 1 or above the length.

    References:
        Li et al. (2016), arXiv:1510.03055.
    """
    whole("n", n, 1, tokens.shape[1])
    grams = tokens.unfold(1, n, 1)
    return torch.tensor([len(row.unique(dim=0)) / len(row) for row in grams], dtype=torch.float64)

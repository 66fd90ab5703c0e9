"""Tiny tokenizers of the kinds in circulation, each with a decoder of its own, made on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

LETTERS = "abcdefhiklmnoprstuwy"
WORDS = ["the", "sky", "is", "blue", "def", "return"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}


def llama_like(bos: bool = True) -> PreTrainedTokenizerFast:
    """SentencePiece as in Llama 2 and Mistral: `▁` for a space, unknown characters as bytes, `<s>` before a text."""
    pieces = [*SPECIAL.values(), "<turn>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "\n", ",", "1"]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "s"), ("▁s", "k"), ("▁sk", "y"), ("▁", "▁"), ("▁▁", "▁▁")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # pyright: ignore
    made.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(made, "<s> $A" if bos else None)


def byte_level(bos: bool = False) -> PreTrainedTokenizerFast:
    """Bytes as in GPT-2, Llama 3, Qwen and LLaDA; no token spans two bytes but ` t`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: token for token, piece in enumerate([*SPECIAL.values(), "<turn>", *alphabet, "Ġt"])}
    made = Tokenizer(models.BPE(vocab, [("Ġ", "t")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return _fast(made, "<s> $A" if bos else None)


def word_piece() -> BertTokenizer:
    """WordPiece as in BERT, `[CLS]` before a text and `[SEP]` after it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS), *WORDS]
    return BertTokenizer(vocab={word: token for token, word in enumerate([*words, ".", "'"])})


def in_python() -> ByT5Tokenizer:
    """A tokenizer written in Python: bytes, `</s>` after a text."""
    return ByT5Tokenizer(extra_ids=0, additional_special_tokens=["<turn>"])


KINDS: dict[str, Any] = {
    "llama-like": llama_like,
    "llama-like, bare": lambda: llama_like(bos=False),
    "byte-level": byte_level,
    "byte-level, bos": lambda: byte_level(bos=True),
    "word-piece": word_piece,
    "python": in_python,
}


def mask_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The mask token; of a tokenizer without one, the id behind its last."""
    found: Any = tokenizer.mask_token_id
    return len(tokenizer) if found is None else found


def _fast(made: Tokenizer, single: str | None) -> PreTrainedTokenizerFast:
    made.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (*SPECIAL.values(), "<turn>")]
    )
    if single is not None:
        bos = made.token_to_id("<s>")
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", bos)])  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=["<turn>"], **SPECIAL)

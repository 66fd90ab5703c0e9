from typing import Any

import pytest
import torch
from layouts import END, MASK, ROUNDING, TOKENS, write

import unmask
from unmask.denoiser import Query
from unmask.language import LanguageModel
from unmask.tasks.instructions import MASK_ID

QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
SIZE = 4


def adapted(folder, **options):
    return unmask.load(write(folder, "dream", **QWEN), shift=False, **options)


def changed_rows(denoiser, position: int) -> list[int]:
    """The masked positions whose logits change when a token does."""
    x = torch.tensor(TOKENS[:1])
    other = x.clone()
    other[0, position] = 7
    query = Query.of(x, MASK)
    where = query.where & (other == MASK)
    before = denoiser(Query(x, where, query.valid, query.sequence))
    after = denoiser(Query(other, where, query.valid, query.sequence))
    moved = (after - before)[:, :END].abs().amax(-1) > 1e-4
    return where.nonzero()[moved, 1].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_positions_look_at_their_block_and_those_before(attention, tmp_path):
    denoiser = adapted(tmp_path, block_causal=SIZE, attn_implementation=attention)
    masks = [place for place, token in enumerate(TOKENS[0]) if token == MASK]
    for position in range(12):
        expected = [place for place in masks if place != position and place // SIZE >= position // SIZE]
        assert changed_rows(denoiser, position) == expected


def test_one_block_is_no_block(tmp_path):
    query = Query.of(torch.tensor(TOKENS), MASK)
    whole = adapted(tmp_path, block_causal=12)(query)
    assert (whole - adapted(tmp_path)(query))[:, :END].abs().max() < ROUNDING
    assert (adapted(tmp_path, block_causal=SIZE)(query) - whole)[:, :END].abs().max() > 1e-2


def test_padding_does_not_matter(tmp_path):
    denoiser = adapted(tmp_path, block_causal=SIZE)
    x = torch.tensor(TOKENS)
    alone = denoiser(Query.of(x[:1, :7], MASK))
    padded = torch.cat([torch.cat([x[:1, :7], torch.full((1, 5), MASK)], 1), x[1:]])
    valid = torch.tensor([[True] * 7 + [False] * 5, [True] * 12])
    together = denoiser(Query(padded, (padded == MASK) & valid, valid, torch.arange(2)))
    assert (together[: len(alone)] - alone)[:, :END].abs().max() < ROUNDING


def test_a_model_in_memory_can_be_block_causal(tmp_path):
    loaded = adapted(tmp_path, block_causal=SIZE)
    model = LanguageModel.of(loaded.network.model, mask_id=MASK, block_causal=SIZE)  # pyright: ignore
    query = Query.of(torch.tensor(TOKENS), MASK)
    assert torch.equal(model(query), loaded(query))


@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_blocks_that_are_none_are_refused(size, tmp_path):
    with pytest.raises(ValueError, match="block_causal must be a whole number of positions >= 1"):
        adapted(tmp_path, block_causal=size)


def test_models_that_look_everywhere_are_not_made_block_causal(tmp_path):
    for layout in ("llada", "dream"):
        with pytest.raises(ValueError, match=f"block_causal does not apply.*a {layout} attends to all"):
            unmask.load(write(tmp_path / layout, layout), block_causal=4)
    with pytest.raises(ValueError, match="block_causal does not apply"):
        unmask.load("sudoku", block_causal=4)


def test_other_architectures_are_refused_by_name():
    from transformers import BertConfig, BertForMaskedLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    bert = BertForMaskedLM(BertConfig(vocab_size=MASK_ID + 1, **sizes))
    with pytest.raises(ValueError, match=r"block-causal attention is for LLaDA, .*; this is a BertForMaskedLM"):
        LanguageModel.of(bert, mask_id=MASK_ID, block_causal=4)

"""The task of short instructions, and the start of the network that is trained on it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from unmask.models.pretrained.llada import llada_config, llada_settings, new_llada
from unmask.models.pretrained.neighbours import OFFSETS, look_at_neighbours
from unmask.tasks.instructions import END_ID, KINDS, MASK_ID, PAD_ID, USER_ID, InstructionTask, split_of
from unmask.training.config import TrainConfig
from unmask.training.networks import build_network, save_network

SIZES = {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 96, "rope_theta": 100.0}


def test_a_training_sequence_leaves_more_masks_than_its_response_needs() -> None:
    task = InstructionTask(kinds="sums", length=40)
    examples = task.examples("train")
    chats, spare = 0, set[int]()
    for index in range(300):
        tokens, maskable = examples[index]
        one, prompt, canvas = examples.instruction(index)
        assert tokens.shape == maskable.shape == (40,)
        assert maskable.nonzero().flatten().tolist() == list(range(len(prompt), len(prompt) + canvas))
        assert task.show(tokens[maskable]) == one.answer + "<|endoftext|>" * (canvas - len(one.answer))
        assert (tokens[len(prompt) + canvas :] == PAD_ID).all()
        chats += USER_ID in prompt
        spare.add(canvas - len(one.answer))
    assert 110 < chats < 190
    assert spare >= {1, 2, 3, 4, 15}  # so their number does not tell the response's


def test_every_instruction_of_a_sequence_belongs_to_the_split() -> None:
    task = InstructionTask(kinds="sums")
    for split in ("validation", "test"):
        assert {split_of(one.key) for one in task.instructions(split, 100)} == {split}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_answer_scores_one_and_another_zero(kind: str) -> None:
    task = InstructionTask(kinds=kind, length=160, canvas=64)
    prompts = task.prompts("validation", 12)
    assert task.score(prompts, prompts.answers).tolist() == [1.0] * 12
    wrong = torch.where(prompts.tokens == MASK_ID, END_ID, prompts.answers)
    assert task.score(prompts, wrong).tolist() == [0.0] * 12


def test_a_response_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="make length and canvas larger"):
        InstructionTask(kinds="steps", length=40, canvas=8).prompts("validation", 1)


def test_attention_starts_at_the_neighbours() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llada_config(llada_settings(SIZES, 101, MASK_ID, 64)))
    model.set_attn_implementation("eager")
    look_at_neighbours(model)
    x = torch.randint(0, 95, (4, 40))
    seen = model(input_ids=x, attention_mask=torch.zeros(4, 1, 40, 40), output_attentions=True).attentions
    for offset, head in zip(OFFSETS[0], range(4), strict=True):
        middle = seen[0][:, head, 8:32]  # [batch, query, key]
        places = torch.arange(8, 32) + (offset or 0)
        share = middle.gather(2, places.expand(4, 24).unsqueeze(2)).mean()
        assert (share > 0.4) if offset is not None else (share < 0.1)


def test_neighbours_are_a_setting_and_other_weights_stay_random() -> None:
    torch.manual_seed(0)
    plain = new_llada(SIZES, 101, MASK_ID, 64, PAD_ID)
    torch.manual_seed(0)
    same = new_llada({**SIZES, "neighbours": False}, 101, MASK_ID, 64, PAD_ID)
    other = new_llada({**SIZES, "neighbours": True}, 101, MASK_ID, 64, PAD_ID)
    for (name, weight), (_, copy) in zip(plain.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(weight, copy), name
    channel = other.model.model.embed_tokens.weight[:, 0]
    assert channel.max() == channel.min() > 0
    with pytest.raises(ValueError, match="neighbors"):
        new_llada({**SIZES, "neighbors": True}, 101, MASK_ID, 64, PAD_ID)


def test_a_network_starts_from_another_of_its_sizes(tmp_path: Path) -> None:
    task = InstructionTask(kinds="sums", length=40, canvas=8)

    def config(**network: Any) -> TrainConfig:
        given = {"kind": "llada", **SIZES, "d_model": 32, **network}
        return TrainConfig(task={"name": "instructions"}, network=given, steps=1, out=tmp_path)  # pyright: ignore

    first = build_network(config(), task)
    save_network(tmp_path / "first", first, config(), task, {})
    again = build_network(config(start=str(tmp_path / "first")), task)
    for (name, weight), (_, copy) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(weight.bfloat16().float(), copy), name  # as it is saved
    with pytest.raises(ValueError, match="it has num_hidden_layers 4 for 2"):
        build_network(config(start=str(tmp_path / "first"), n_layers=2), task)

"""The real LLaDA2 pipeline of diffusers with our scheduler: its tokens are our loop's, whatever the rule or batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import LLaDA2Pipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unmask import derive, sample
from unmask.denoiser import Query
from unmask.integrations.diffusers import UnmaskScheduler
from unmask.oracles import TableDenoiser, exact_law, random_table
from unmask.rules.named import named_rule

WORDS = ["<eos>", "<mask>", "<unk>", *(f"w{number}" for number in range(13))]
EOS, MASK = 0, 1
EB = "entropy-bound:gamma=0.3"
RULES = [
    EB,
    "entropy-bound:gamma=0,proxy=margin",
    "carried-bound:epsilon=0.5",
    "noisy-bound:gamma=0.3",
    "steps:steps=2",
    "klass:threshold=0.4",
    "first-hitting-parallel:steps=3",
    "first-hitting-extrapolated:steps=3",
    "llada-quota:steps=2",
    "all",
]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: token for token, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", mask_token="<mask>", unk_token="<unk>", pad_token="<eos>"
    )


def llama(seed: int = 0, eos: float = -30.0) -> LlamaForCausalLM:
    """A bidirectional Llama in float64 with weights large enough to have something to say."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=None,
    )
    config.is_causal = False
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(12 if weight.ndim > 1 else 1)
    model.lm_head.register_forward_hook(
        lambda _, __, logits: logits.index_add(-1, torch.tensor([EOS]), logits.new_full((*logits.shape[:2], 1), eos))
    )
    return model


class Model(nn.Module):
    """What the pipeline asks of a model besides logits."""

    device = torch.device("cpu")
    dtype = torch.float64


class OracleModel(Model):
    """Exact conditionals of the last block, as a model that the pipeline can call."""

    def __init__(self, oracle: TableDenoiser) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, x: Tensor, attention_mask: Tensor, position_ids: Tensor) -> SimpleNamespace:
        block = x[:, -self.oracle.length :]
        query = Query.of(block, self.oracle.mask_id)
        logits = torch.zeros(*x.shape, self.oracle.vocab_size, dtype=torch.float64)
        logits[:, -self.oracle.length :][query.where] = self.oracle(query)
        return SimpleNamespace(logits=logits)


def pipeline(model: nn.Module, rule: str = EB, block_length: int = 4) -> Any:
    pipe = LLaDA2Pipeline(model=model, scheduler=UnmaskScheduler(rule, block_length), tokenizer=tokenizer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def number(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator))


@pytest.fixture(scope="module")
def table() -> TableDenoiser:
    return random_table(3, 4, seed=1)


def oracle_batch(table: TableDenoiser, rows: int) -> dict[str, Any]:
    prompt = torch.zeros(rows, table.length, dtype=torch.int64)
    return {"input_ids": prompt, "gen_length": table.length, "mask_token_id": table.mask_id, "eos_early_stop": False}


@pytest.mark.parametrize("rule", RULES)
def test_the_pipeline_draws_what_the_loop_draws(table: TableDenoiser, rule: str):
    out = pipeline(OracleModel(table), rule)(**oracle_batch(table, 40), temperature=0.8, generator=seeded(5))
    streams = [derive(derive(number(seeded(5)), row), 0) for row in range(40)]
    masks = torch.full((40, table.length), table.mask_id)
    own = sample(table, masks, named_rule(rule).rule, streams=streams, temperature=0.8)
    assert torch.equal(out.sequences, own.tokens)


def test_the_pipelines_samples_have_the_exact_law(table: TableDenoiser):
    """Pearson on 4,000 sequences; a correct scheduler fails one seed in 10⁶."""
    pipe = pipeline(OracleModel(table), EB)
    out = pipe(**oracle_batch(table, 4000), temperature=1.0, generator=seeded(0))
    law = exact_law(table, named_rule(EB).rule, torch.full((table.length,), table.mask_id))
    assert law.pvalue(out.sequences) > 1e-6
    other = exact_law(table, named_rule("all").rule, torch.full((table.length,), table.mask_id))
    assert other.pvalue(out.sequences) < 1e-6
    assert float(pipe.scheduler.nfe.double().mean()) == pytest.approx(law.nfe_mean, abs=0.1)


def test_text_comes_out_without_masks_whatever_the_number_of_steps():
    pipe = pipeline(llama())
    out = pipe("w1 w2 w3", gen_length=9, num_inference_steps=1, temperature=1.0, generator=seeded(1))
    assert out.sequences.shape == (1, 9)
    assert not bool((out.sequences == MASK).any())
    assert out.texts is not None
    assert len(out.texts[0].split()) == 9
    again = pipe("w1 w2 w3", gen_length=9, temperature=1.0, generator=seeded(1))
    assert torch.equal(again.sequences, out.sequences)
    other = pipe("w1 w2 w3", gen_length=9, temperature=1.0, generator=seeded(2))
    assert not torch.equal(other.sequences, out.sequences)


def test_gamma_zero_unmasks_one_position_per_evaluation():
    pipe = pipeline(llama(), "entropy-bound:gamma=0")
    sizes: list[int] = []

    def look(_: Any, step: int, timestep: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes.extend(state["transfer_index"].sum(-1).tolist())
        return {}

    prompt = torch.tensor([[3, 4, 5, 6]])
    pipe(
        input_ids=prompt,
        gen_length=8,
        generator=seeded(0),
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["transfer_index"],
    )
    assert sizes == [1] * 8
    assert pipe.scheduler.nfe.tolist() == [8]


def test_rows_with_generators_of_their_own_do_not_depend_on_the_batch():
    pipe = pipeline(llama())
    prompts = torch.tensor([[3, 4, 5], [9, 9, 9], [12, 3, 7]])
    together = pipe(
        input_ids=prompts, gen_length=13, temperature=1.0, generator=[seeded(row) for row in range(3)]
    ).sequences
    counts = pipe.scheduler.nfe.tolist()
    for row in range(3):
        alone = pipe(
            input_ids=prompts[row : row + 1], gen_length=13, temperature=1.0, generator=[seeded(row)]
        ).sequences
        assert torch.equal(alone[0], together[row])
        assert pipe.scheduler.nfe.tolist() == counts[row : row + 1]


def test_blocks_use_different_random_numbers():
    """A model that ignores its input would repeat itself if a position's uniform came back in the next block."""

    class Flat(Model):
        def forward(self, x: Tensor, attention_mask: Tensor, position_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.zeros(*x.shape, len(WORDS)))

    out = pipeline(Flat(), "all")(
        input_ids=torch.full((1, 4), 3), gen_length=16, temperature=1.0, generator=seeded(0), eos_early_stop=False
    )
    blocks = out.sequences.reshape(4, 4).tolist()
    assert len({tuple(block) for block in blocks}) == 4


def test_a_sequence_that_has_ended_neither_goes_on_nor_holds_up_the_others():
    pipe = pipeline(llama(eos=1.0), "left-to-right")
    prompts = torch.randint(3, len(WORDS), (16, 4), generator=seeded(3))
    out = pipe(input_ids=prompts, gen_length=24, temperature=1.0, generator=seeded(0))
    ends = [row.index(EOS) + 1 if EOS in row else 24 for row in out.sequences.tolist()]
    assert min(ends) < 24
    assert len(set(ends)) > 4
    assert pipe.scheduler.nfe.tolist() == ends


def test_greedy_takes_the_argmax(table: TableDenoiser):
    rule = "top1-entropy"
    first = pipeline(OracleModel(table), rule)(**oracle_batch(table, 3), temperature=0.0, generator=seeded(0))
    second = pipeline(OracleModel(table), rule)(
        **oracle_batch(table, 3), temperature=1.0, sampling_method="greedy", generator=seeded(1)
    )
    assert torch.equal(first.sequences, second.sequences)
    masks = torch.full((3, table.length), table.mask_id)
    own = sample(table, masks, named_rule(rule).rule, seed=0, temperature=0.0)
    assert torch.equal(first.sequences, own.tokens)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": 0.9}, "threshold=0.9 has no effect"),
        ({"editing_threshold": 0.4}, "nothing is edited"),
        ({"minimal_topk": 2}, "minimal_topk=2"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators for a batch of 1"),
    ],
)
def test_settings_without_effect_or_out_of_range_are_refused(setting: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        pipeline(llama())("w1", gen_length=4, **setting)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'entropybound'"):
        UnmaskScheduler("entropybound")
    with pytest.raises(ValueError, match="needs a value for gamma"):
        UnmaskScheduler("entropy-bound")
    with pytest.raises(ValueError, match="several states of a sequence"):
        UnmaskScheduler("speculative")
    scheduler: Any = UnmaskScheduler(EB, 4)
    logits, x = torch.zeros(1, 4, 5), torch.full((1, 4), 4)
    with pytest.raises(ValueError, match="for masked models"):
        scheduler.step(logits, 0, x)
    with pytest.raises(ValueError, match="do not fit a block"):
        scheduler.step(logits[:, :3], 0, x, mask_token_id=4)
    with pytest.raises(ValueError, match="sampling_method"):
        scheduler.step(logits, 0, x, mask_token_id=4, sampling_method="best")


def test_the_scheduler_is_saved_and_loaded_with_its_rule(tmp_path):
    UnmaskScheduler(EB, block_length=8).save_pretrained(tmp_path)
    loaded: Any = UnmaskScheduler.from_pretrained(tmp_path)
    assert str(loaded.rule) == str(named_rule(EB).rule)
    assert loaded.config.block_length == 8


@pytest.mark.parametrize(
    ("prompt", "new"),
    [
        ([3, MASK, 4, 5], 4),  # in a block of its own
        ([3, 4, 5, 6, 7, MASK], 2),  # in a block with the answer
        ([MASK], 7),
        ([3, 4, 5, 6], 5),  # three positions are cut off
        ([3, 4, 5], 2),
        ([3, 4, 5, 6], 1),
    ],
)
@pytest.mark.parametrize("rule", ["top1-entropy", "left-to-right"])
def test_prompts_are_kept_and_what_is_cut_off_costs_nothing(prompt: list[int], new: int, rule: str):
    """The case from the field: a mask in the prompt was overwritten or not by its block, and the tail was drawn."""
    pipe, seen = pipeline(llama(), rule), []

    def look(_: Any, step: int, timestep: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(state["block_x"][0].tolist())
        return {}

    out = pipe(input_ids=torch.tensor([prompt]), gen_length=new, callback_on_step_end=look, generator=seeded(0))
    assert all(x[: len(prompt)] == prompt for x in seen)
    assert pipe.scheduler.nfe.tolist() == [new]
    assert out.sequences.shape == (1, new)
    assert MASK not in out.sequences[0].tolist()


def test_a_tail_that_is_cut_off_is_no_part_of_what_the_rule_plans():
    """Half of the masks per evaluation: of the five that are wanted, not of the eight that there are."""
    pipe = pipeline(llama(), "steps:steps=2", block_length=8)
    pipe(input_ids=torch.tensor([[3] * 8]), gen_length=5, generator=seeded(0), temperature=1.0)
    assert pipe.scheduler.nfe.tolist() == [2]
    whole = pipeline(llama(), "steps:steps=2", block_length=5)
    scheduler: Any = whole.scheduler
    logits, x = torch.randn(1, 8, 9, generator=seeded(1)), torch.full((1, 8), MASK)
    scheduler.set_timesteps(4, gen_length=5)
    after = scheduler.step(logits, 0, x, mask_token_id=MASK, generator=seeded(0))
    assert int(after.transfer_index.sum()) == 3
    assert not bool(after.transfer_index[0, 5:].any())
    scheduler.set_timesteps(4)
    plain = scheduler.step(logits, 0, x, mask_token_id=MASK, generator=seeded(0))
    assert int(plain.transfer_index.sum()) == 4


def test_a_prompt_mask_is_heeded_and_checked():
    scheduler: Any = UnmaskScheduler("all", 4)
    logits, x = torch.zeros(2, 4, 5), torch.full((2, 4), 4)
    prompt = torch.tensor([True, False, True, False])
    after = scheduler.step(logits, 0, x, mask_token_id=4, prompt_mask=prompt, generator=seeded(0))
    assert after.prev_sample[:, prompt].tolist() == [[4, 4], [4, 4]]
    assert bool((after.prev_sample[:, ~prompt] != 4).all())
    for wrong in (prompt[:3], prompt.long(), prompt.expand(2, 4)):
        with pytest.raises(ValueError, match="prompt_mask must be one boolean per position"):
            scheduler.step(logits, 0, x, mask_token_id=4, prompt_mask=wrong)


def test_ids_beyond_the_pipelines_tokenizer_are_not_drawn():
    class Padded(Model):
        def forward(self, x: Tensor, attention_mask: Tensor, position_ids: Tensor) -> SimpleNamespace:
            logits = torch.zeros(*x.shape, len(WORDS) + 7)
            logits[..., len(WORDS) :] = 9.0
            return SimpleNamespace(logits=logits)

    for temperature in (0.0, 1.0):
        out = pipeline(Padded(), "all")(
            input_ids=torch.tensor([[3, 4]]), gen_length=30, temperature=temperature, generator=seeded(0)
        )
        assert int(out.sequences.max()) < len(WORDS)
    (end,) = {len(WORDS) + 6}
    out = pipeline(Padded(), "left-to-right")(
        input_ids=torch.tensor([[3, 4]]), gen_length=30, generator=seeded(0), eos_token_id=end
    )
    assert out.sequences[0, 0] == end  # but for one that ends a text

"""The SGLang plugin against a stand-in for the interface of SGLang 0.5.23; SGLang itself is not needed."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask import derive, sample
from unmask.denoiser import Query
from unmask.errors import AdapterError
from unmask.integrations import sglang as plugin
from unmask.oracles import TableDenoiser, exact_law, random_table
from unmask.rules.named import named_rule

EB = "entropy-bound:gamma=0.3"
ALL = 1 << 30  # what SGLang makes of a request without top_k


class DllmAlgorithm:
    """What SGLang's base class gives to an algorithm: its configuration and the two loops."""

    def __init__(self, config: Any) -> None:
        self.block_size, self.mask_id = config.block_size, config.mask_id

    def run_together(self, forward: Any, batch: Any) -> int:
        """Steps a batch until every block is done; returns the evaluations."""
        states = self.init_step_state(batch)  # pyright: ignore[reportAttributeAccessIssue]
        for count in range(1, self.block_size + 2):
            if all(self.step(batch, forward(batch), states)):  # pyright: ignore[reportAttributeAccessIssue]
                return count
        raise AssertionError("a block was not done after as many evaluations as it has tokens, and one more")

    def run_once(self, forward: Any, batch: Any, carried: list[Any]) -> tuple[list[bool], list[Any]]:
        """One evaluation of blocks that come and go: new ones have no state yet."""
        fresh = self.init_step_state(batch)  # pyright: ignore[reportAttributeAccessIssue]
        states = [fresh[row] if state is None else state for row, state in enumerate(carried)]
        return self.step(batch, forward(batch), states), states  # pyright: ignore[reportAttributeAccessIssue]


def made(table: TableDenoiser, **settings: Any) -> Any:
    config = SimpleNamespace(block_size=table.length, mask_id=table.mask_id, algorithm_config={"rule": EB, **settings})
    return plugin.algorithm(DllmAlgorithm)(config)


def batch_of(blocks: Tensor, rids: list[str], place: int = 0, **sampling: Any) -> Any:
    count, length = blocks.shape
    info = {"temperatures": torch.ones(count, 1), "top_ks": torch.full((count,), ALL), "top_ps": torch.ones(count)}
    return SimpleNamespace(
        batch_size=count,
        input_ids=blocks.reshape(-1).clone(),
        positions=torch.arange(place, place + length).repeat(count),
        rids=rids,
        sampling_info=SimpleNamespace(**{**info, **sampling}),
    )


@pytest.fixture(scope="module")
def table() -> TableDenoiser:
    return random_table(3, 4, seed=1)


@pytest.fixture(scope="module")
def forward(table: TableDenoiser) -> Any:
    def run(batch: Any) -> Tensor:
        x = batch.input_ids.view(batch.batch_size, table.length)
        logits = torch.zeros(*x.shape, table.vocab_size, dtype=torch.float64)
        query = Query.of(x, table.mask_id)
        logits[query.where] = table(query)
        return logits.view(-1, table.vocab_size)

    return run


def masks(table: TableDenoiser, rows: int) -> Tensor:
    return torch.full((rows, table.length), table.mask_id)


def names(rows: int) -> list[str]:
    return [f"request {row}" for row in range(rows)]


@pytest.mark.parametrize(
    "rule", [EB, "entropy-bound:gamma=0", "carried-bound:epsilon=0.5", "noisy-bound:gamma=0.3", "steps:steps=2", "all"]
)
def test_a_batch_gets_what_the_loop_draws(table: TableDenoiser, forward: Any, rule: str):
    algorithm, batch = made(table, rule=rule, seed=3), batch_of(masks(table, 20), names(20), place=32)
    evaluations = algorithm.run_together(forward, batch)
    streams = [derive(3, rid, 32) for rid in names(20)]
    own = sample(table, masks(table, 20), named_rule(rule).rule, streams=streams)
    assert torch.equal(batch.input_ids.view(20, -1), own.tokens)
    assert evaluations == own.forward_passes + 1  # the last one writes the cache


def test_the_samples_have_the_exact_law(table: TableDenoiser, forward: Any):
    """Pearson on 4,000 blocks; a correct algorithm fails one seed in 10⁶."""
    batch = batch_of(masks(table, 4000), names(4000))
    made(table).run_together(forward, batch)
    law = exact_law(table, named_rule(EB).rule, masks(table, 1)[0])
    assert law.pvalue(batch.input_ids.view(4000, -1)) > 1e-6


def test_blocks_that_come_and_go_are_answered_as_if_alone(table: TableDenoiser, forward: Any):
    algorithm = made(table, rule="entropy-bound:gamma=0")
    x, rids = masks(table, 6), names(6)
    x[1, 2], x[4, :2] = 1, torch.tensor([0, 2])
    sampling = {
        "temperatures": torch.tensor([[1.0], [0.5], [1.0], [2.0], [1.0], [1.0]]),
        "top_ks": torch.tensor([ALL, ALL, 1, 2, ALL, ALL]),
        "top_ps": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.8, 1.0]),
    }

    def some(rows: list[int], blocks: Tensor) -> Any:
        chosen: dict[str, Any] = {name: values[rows] for name, values in sampling.items()}
        return batch_of(blocks[rows], [rids[row] for row in rows], **chosen)

    alone = []
    for row in range(6):
        batch = some([row], x)
        algorithm.run_together(forward, batch)
        alone.append(batch.input_ids.tolist())

    states: list[Any] = [None] * 6
    now, queue, running = x.clone(), [3, 4, 5], [0, 1, 2]
    answers: dict[int, list[int]] = {}
    while running:
        batch = some(running, now)
        done, after = algorithm.run_once(forward, batch, [states[row] for row in running])
        now[running] = batch.input_ids.view(len(running), -1)
        for row, finished, state in zip(running, done, after, strict=True):
            states[row] = state
            if finished:
                answers[row] = now[row].tolist()
        running = [row for row in running if row not in answers]
        running = ([queue.pop()] if queue else []) + running  # in another order than they began
    assert [answers[row] for row in range(6)] == alone


def test_greedy_requests_take_the_argmax(table: TableDenoiser, forward: Any):
    batch = batch_of(masks(table, 3), names(3), top_ks=torch.ones(3, dtype=torch.int64))
    made(table).run_together(forward, batch)
    own = sample(table, masks(table, 3), named_rule(EB).rule, seed=0, temperature=0.0)
    assert torch.equal(batch.input_ids.view(3, -1), own.tokens)


def test_logits_may_come_in_the_processors_output(table: TableDenoiser, forward: Any):
    first, second = (batch_of(masks(table, 2), names(2)) for _ in range(2))
    made(table).run_together(forward, first)
    made(table).run_together(lambda batch: SimpleNamespace(full_logits=forward(batch)), second)
    assert torch.equal(first.input_ids, second.input_ids)


def test_tokens_are_written_in_place_in_their_own_dtype(table: TableDenoiser, forward: Any):
    batch = batch_of(masks(table, 2).int(), names(2))
    ids = batch.input_ids
    made(table).run_together(forward, batch)
    assert batch.input_ids is ids
    assert ids.dtype == torch.int32
    assert not bool((ids == table.mask_id).any())


def test_masks_that_a_prompt_holds_as_text_stay(table: TableDenoiser, forward: Any):
    batch = batch_of(masks(table, 2), names(2))
    batch.dllm_prompt_mask = torch.tensor([[True, False, False, False], [False] * 4])
    evaluations = made(table, rule="steps:steps=3").run_together(forward, batch)
    left = (batch.input_ids.view(2, -1) == table.mask_id).tolist()
    assert left == [[True, False, False, False], [False] * 4]
    assert evaluations == 4


def test_the_entry_point_registers_the_algorithm(monkeypatch: pytest.MonkeyPatch):
    registry: Any = ModuleType("sglang.srt.dllm.algorithm")
    registry.algo_name_to_cls = {}
    base: Any = ModuleType("sglang.srt.dllm.algorithm.base")
    base.DllmAlgorithm = DllmAlgorithm
    parent: Any = ModuleType("sglang.srt.dllm")
    parent.algorithm = registry
    for module in (ModuleType("sglang"), ModuleType("sglang.srt"), parent, registry, base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["sglang.srt.plugins"].values()
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)()
    registered = registry.algo_name_to_cls["Unmask"]
    assert issubclass(registered, DllmAlgorithm)
    assert registered.__name__ == "Unmask"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "must name a rule"),
        ({"gamma": 0.1}, "must name a rule"),
        ({"rule": EB, "gama": 0.1}, "unknown setting gama"),
        ({"rule": "entropybound"}, "unknown rule"),
        ({"rule": EB, "seed": "x"}, "seed must be an integer"),
        ({"rule": "independence-test:epsilon=0"}, "several evaluations"),
        ({"rule": "speculative"}, "several states"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(settings: Any, message: str):
    config = SimpleNamespace(block_size=4, mask_id=3, algorithm_config=settings)
    with pytest.raises(ValueError, match=message):
        plugin.algorithm(DllmAlgorithm)(config)


def test_requests_for_more_than_is_supported_are_refused(table: TableDenoiser):
    def request(**asked: Any) -> Any:
        return SimpleNamespace(sampling_params=SimpleNamespace(min_p=0.0, temperature=0.7, **asked))

    algorithm = made(table)
    assert algorithm.validate_request(request(repetition_penalty=1.0, regex=None, logit_bias=None)) is None
    assert "does not support repetition_penalty, regex" in algorithm.validate_request(
        request(repetition_penalty=1.2, regex="a+")
    )


@pytest.mark.parametrize("rule", ["all", "topk:k=3", "klass:threshold=0.6"])
def test_ids_beyond_a_tokenizer_are_not_drawn(tmp_path: Path, rule: str):
    pytest.importorskip("transformers")
    from decoders import byte_level

    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path)
    size = len(tokenizer) + 10

    def run(**settings: Any) -> Tensor:
        config = SimpleNamespace(block_size=8, mask_id=2, algorithm_config={"rule": rule, **settings})
        batch = batch_of(torch.full((3, 8), 2), ["a", "b", "c"], top_ks=torch.tensor([ALL, 30, 1]))
        logits = torch.zeros(24, size).index_fill(1, torch.arange(len(tokenizer), size), 9.0)
        plugin.algorithm(DllmAlgorithm)(config).run_together(lambda _: logits, batch)
        return batch.input_ids

    assert int(run(tokenizer=str(tmp_path)).max()) < len(tokenizer) <= int(run().max())
    with pytest.raises(AdapterError):
        run(tokenizer=str(tmp_path / "nowhere"))

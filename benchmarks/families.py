"""What keeping finished blocks saves where attention is block-causal, for docs/families.md.

    python -m benchmarks.families           # measure, write docs/results/families-blocks.json and the page's table
    python -m benchmarks.families render    # the page again, from the saved figures

Processor time of one thread, so that what else the machine does falls on nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from unmask.language import LanguageModel
from unmask.sampling.result import StepInfo
from unmask.sampling.state import State

from .pages import fill

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "families.md", ROOT / "docs" / "results" / "families-blocks.json"
RULE, SIZE, PROMPT, NEW = "topk:k=8", 32, 64, (64, 256, 1024)
SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}


def random_model() -> LanguageModel:
    """SDAR's architecture with random weights of variance 1 / inputs, blocks of 32."""
    network = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
    return LanguageModel.of(network.eval(), mask_id=SHAPE["vocab_size"] - 1, end_ids=[], block_causal=SIZE)


def answer(model: LanguageModel, new: int, cache: str | None) -> tuple[tuple[int, ...], list[float]]:
    """Tokens of an answer, and the processor seconds that each of its blocks took."""
    prompt = torch.randint(0, model.mask_id, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    seconds, before = [0.0] * (new // SIZE), time.process_time()

    def note(state: State, info: StepInfo) -> None:
        nonlocal before
        block = int(info.chosen[0].nonzero()[0]) // SIZE - PROMPT // SIZE
        now = time.process_time()
        seconds[block] += now - before
        before = now

    options: dict[str, Any] = {"rule": RULE, "max_new_tokens": new, "temperature": 1.0, "cache": cache}
    (found,) = model.generate([prompt], on_step=note, **options)
    return found.tokens, seconds


def attention_alone(model: LanguageModel, prefix: int) -> float:
    """Processor seconds of the attention of one block to itself and so many positions before, in all layers, once.

    Each layer has keys and values of its own, as in a model.
    """
    layers: Any = model.network.model.model.layers  # pyright: ignore[reportAttributeAccessIssue]
    heads, key_heads, width = (SHAPE[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    query, look = torch.randn(1, heads, SIZE, width), torch.zeros(1, 1, SIZE, prefix + SIZE)
    kept = torch.randn(len(layers), 2, 1, key_heads, prefix + SIZE, width)
    times = []
    for _ in range(31):
        began = time.process_time()
        for layer, (keys, values) in zip(layers, kept, strict=True):
            sdpa_attention_forward(layer.self_attn, query, keys, values, look)
        times.append(time.process_time() - began)
    return float(numpy.median(times))


def slope(prefixes: list[int], seconds: list[float]) -> float:
    """Microseconds that each further position before a block costs, by Theil and Sen: the median slope of pairs."""
    pairs = [
        (b - a, v - u)
        for k, (a, u) in enumerate(zip(prefixes, seconds, strict=True))
        for b, v in zip(prefixes[k + 1 :], seconds[k + 1 :], strict=True)
    ]
    return 1e6 * float(numpy.median([rise / run for run, rise in pairs]))


def measure() -> dict[str, Any]:
    """Answers of each length with finished blocks kept and without, and how the cost of a block grows."""
    torch.set_num_threads(1)
    model, rows, kept = random_model(), [], []
    answer(model, NEW[0], None)
    for new in NEW:
        tokens, kept = answer(model, new, None)
        same, plain = answer(model, new, "none")
        rows.append({"new": new, "kept": sum(kept), "plain": sum(plain), "same_tokens": tokens == same})
        print(rows[-1], flush=True)
    prefixes = [PROMPT + SIZE * block for block in range(len(kept))]
    evaluations = -(-SIZE // int(RULE.partition("k=")[2]))
    alone = [attention_alone(model, prefix) for prefix in prefixes]
    return {
        "rule": RULE,
        "block": SIZE,
        "prompt": PROMPT,
        "evaluations_per_block": evaluations,
        "rows": rows,
        "seconds_of_blocks": kept,
        # The first block carries the prompt; every other one the block before, once.
        "slope": slope(prefixes[1:], kept[1:]) / (evaluations + 1),
        "slope_attention": slope(prefixes, alone),
    }


def table(saved: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| new tokens | seconds, finished blocks kept | seconds without a cache | ratio | tokens per second, kept |"
        " without | same tokens |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in saved["rows"]:
        new, kept, plain = row["new"], row["kept"], row["plain"]
        lines.append(
            f"| {new} | {kept:.2f} | {plain:.2f} | {plain / kept:.1f} | {new / kept:.0f} | {new / plain:.0f} |"
            f" {'yes' if row['same_tokens'] else 'no'} |"
        )
    lines.append(
        f"\nWith finished blocks kept, a position before a block adds {saved['slope']:.2f} µs to an evaluation of it;"
        f" attention to that position, by itself, takes {saved['slope_attention']:.2f} µs."
    )
    return "\n".join(lines)


def main() -> None:
    """Measures, or renders the page again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["measure", "render"], default="measure")
    if parser.parse_args().what == "measure":
        RESULTS.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
    fill(PAGE, {"families-blocks": table(json.loads(RESULTS.read_text(encoding="utf-8")))})


if __name__ == "__main__":
    main()

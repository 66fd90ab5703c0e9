"""What a cache of keys and values saves and how far its logits drift, for `python -m benchmarks.language caches`."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from unmask.denoiser import Query
from unmask.language import LanguageModel
from unmask.models.pretrained.cache import Cached
from unmask.rules.named import named_rule
from unmask.sampling.loop import Sampler

RULE = "topk:k=2"
CASES = (*((cache, refresh) for cache in ("prefix", "dual") for refresh in (None, 4, 2, 1)), ("block-causal", None))


class _Compared:
    """A cache beside the model itself on the same states: drift at the masked positions, and processor time."""

    def __init__(self, cached: Cached, model: LanguageModel) -> None:
        self.cached, self.model = cached, model
        self.vocab_size, self.mask_id = model.vocab_size, model.mask_id
        self.seconds = [0.0, 0.0]
        self.gap: list[Tensor] = []
        self.mean_gap: list[Tensor] = []
        self.total_variation: list[Tensor] = []
        self.kl: list[Tensor] = []
        self.other_top: list[Tensor] = []
        self.evaluations = 0

    def __call__(self, query: Query) -> Tensor:
        began = time.process_time()
        kept = self.cached(query)
        between = time.process_time()
        exact = self.model(query)
        self.seconds[0] += between - began
        self.seconds[1] += time.process_time() - between
        self.evaluations += 1
        tokens = [token for token in range(self.vocab_size) if token != self.mask_id]
        a, b = exact[:, tokens].double(), kept[:, tokens].double()
        gap, p, q = (a - b).abs(), a.log_softmax(-1), b.log_softmax(-1)
        self.gap.append(gap.amax(-1))
        self.mean_gap.append(gap.mean(-1))
        self.total_variation.append((p.exp() - q.exp()).abs().sum(-1) / 2)
        self.kl.append((p.exp() * (p - q)).sum(-1))
        self.other_top.append((a.argmax(-1) != b.argmax(-1)).double())
        return kept

    def figures(self) -> dict[str, Any]:
        """Over all masked positions of the open block in all evaluations; KL in nats, of the cache from the model."""
        gap = torch.cat(self.gap)
        return {
            "evaluations": self.evaluations,
            "positions": len(gap),
            "max_gap": float(gap.max()),
            "mean_gap": float(torch.cat(self.mean_gap).mean()),
            "total_variation": float(torch.cat(self.total_variation).mean()),
            "kl": float(torch.cat(self.kl).mean().clamp(min=0)),
            "other_top": float(torch.cat(self.other_top).mean()),
            "time": self.seconds[0] / self.seconds[1],
            "seconds_exact": self.seconds[1] / self.evaluations,
        }


def random_model(block_causal: int | None, vocabulary: int = 4096, width: int = 256, layers: int = 12) -> LanguageModel:
    """LLaDA's architecture with random weights of variance 1 / inputs, so that positions hear of each other."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    network = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
    return LanguageModel.of(network.eval(), mask_id=vocabulary - 1, end_ids=[], block_causal=block_causal)


def caches(model: LanguageModel | None = None, prompts: list[list[int]] | None = None, new: int = 64) -> dict[str, Any]:
    """Every cache and refresh interval: a random model on one prompt of 64 tokens, or a model on prompts of its own.

    The answer is written with each cache in turn; the exact logits are those of the model on the states so reached.
    """
    size = new // 4
    rows = []
    for cache, refresh in CASES:
        if model is not None and cache == "block-causal":
            continue
        asked = model or random_model(size if cache == "block-causal" else None)
        given = prompts or torch.randint(0, asked.mask_id, (1, 64), generator=torch.Generator().manual_seed(1)).tolist()
        rule = named_rule(RULE).rule
        x = [torch.tensor([*prompt, *[asked.mask_id] * new]) for prompt in given]
        # The random prompt is four blocks long, so that blocks of the answer are blocks of the attention.
        blocks = Sampler(asked, rule).start(x, seed=0, blocks=size).block
        compared = _Compared(Cached(asked, cache, len(x), refresh), asked)
        sampler = Sampler(compared, rule, last=asked.end_ids)
        sampler.run(sampler.start(x, seed=0, temperature=1.0, blocks=blocks))
        rows.append({"cache": cache, "refresh": refresh, **compared.figures()})
        print(rows[-1], flush=True)
    return {"prompts": 1 if prompts is None else len(prompts), "new_tokens": new, "block": size, "rows": rows}


def table(saved: dict[str, Any]) -> str:
    """The page's table; `saved` has the figures of each model by its name."""
    lines = [
        "| model | cache | everything computed | largest gap of a logit | mean gap | total variation | KL, nats |"
        " other top token | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, report in saved.items():
        for row in report["rows"]:
            often = "never" if row["cache"] == "block-causal" else "once per block"
            if row["refresh"] is not None:
                often = "every evaluation" if row["refresh"] == 1 else f"every {row['refresh']} evaluations"
            lines.append(
                f"| {name} | `{row['cache']}` | {often} | {row['max_gap']:.2g} | {row['mean_gap']:.2g} |"
                f" {row['total_variation']:.2g} | {row['kl']:.2g} | {row['other_top']:.1%} | {row['time']:.2f} |"
            )
    return "\n".join(lines)

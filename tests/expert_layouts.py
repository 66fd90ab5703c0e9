"""Tiny language models with experts in the layouts of real ones; every weight is a function of its name.

Run as a program it asks the families' own modelling code for its logits (see `main`), which is how
`data/expert-logits.json` was made.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from layouts import seeded, write_files
from rounding import allowed
from torch import Tensor

WIDTH, HEAD, LAYERS, VOCAB, MASK, END = 32, 16, 3, 40, 39, 38
DENSE, EXPERT, EXPERTS = 48, 16, 8
BLOCK = 4

ROUNDING = allowed(LAYERS * (2 * WIDTH + DENSE), 4.0)
"""How far logits of these models may be apart for rounding alone: they are around 4, and each is a sum of so many
terms, in each layer those into attention and the feed-forward part and those out of it."""

LLADA2: dict[str, Any] = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": DENSE,
    "max_position_embeddings": 128,
    "max_window_layers": 28,
    "moe_intermediate_size": EXPERT,
    "moe_router_enable_expert_bias": True,
    "n_group": 4,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 3,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "num_shared_experts": 2,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "pad_token_id": END,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 600000,
    "rotary_dim": HEAD // 2,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.3",
    "use_bias": False,
    "use_cache": False,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "use_sliding_window": False,
    "using_split_qkv_in_self_attention": False,
    "vocab_size": VOCAB,
}
"""The fields of LLaDA2.0-mini and flash, in the order of the alphabet."""

LLADA_MOE: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAMoEModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM"},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "dense_intermediate_size": DENSE,
    "eos_token_id": END,
    "expert_intermediate_size": EXPERT,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "max_position_embeddings": 128,
    "moe_layer_freq": [1, 0, 1],
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "norm_topk_prob": None,
    "num_attention_heads": 4,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 3,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "pad_token_id": END,
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 50000,
    "routed_scaling_factor": 1,
    "router_aux_loss_coef": 0.01,
    "router_num_group": None,
    "router_topk_group": None,
    "shared_expert_intermediate_size": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "vocab_size": VOCAB,
}
"""The fields of LLaDA-MoE-7B-A1B, one of whose layers is made dense."""

CONFIGS = {"llada2": LLADA2, "llada-moe": LLADA_MOE}

ONE_EXPERT = {"num_experts_per_tok": 1, "n_group": 2, "topk_group": 1, "partial_rotary_factor": 1.0, "rotary_dim": HEAD}
"""Of a LLaDA2 that gives each token one expert, whose weight is then not divided by the sum, and turns whole heads."""

TOKENS = [
    [5, 17, 3, MASK, MASK, 8, MASK, 21, 0, MASK, 11, MASK],
    [MASK, MASK, 2, 9, 9, MASK, 30, 1, MASK, 4, 25, 7],
]


def _feed_forward(at: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{at}{name}_proj.weight": (inner, WIDTH) for name in ("gate", "up")} | {
        f"{at}down_proj.weight": (WIDTH, inner)
    }


def shapes(layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint: `"llada2"` or `"llada-moe"`."""
    embedding = "model.word_embeddings" if layout == "llada2" else "model.embed_tokens"
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": (VOCAB, WIDTH) for name in (embedding, "lm_head")}
    found["model.norm.weight"] = (WIDTH,)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found |= {f"{at}{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        if layout == "llada2":
            found[f"{at}attention.query_key_value.weight"] = ((4 + 2 * 2) * HEAD, WIDTH)
            found[f"{at}attention.dense.weight"] = (WIDTH, 4 * HEAD)
            found |= {f"{at}attention.{name}_layernorm.weight": (HEAD,) for name in ("query", "key")}
        else:
            found |= {f"{at}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
            found |= {f"{at}self_attn.{name}_norm.weight": (WIDTH // 4,) for name in "qk"}
        if layer == (0 if layout == "llada2" else 1):
            found |= _feed_forward(f"{at}mlp.", DENSE)
            continue
        found[f"{at}mlp.gate.weight"] = (EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            found |= _feed_forward(f"{at}mlp.experts.{expert}.", EXPERT)
        if layout == "llada2":
            found[f"{at}mlp.gate.expert_bias"] = (EXPERTS,)
            found |= _feed_forward(f"{at}mlp.shared_experts.", 2 * EXPERT)
    return found


def weights(layout: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint; the biases of experts turn many a choice, and many are far below 0."""
    made = seeded(shapes(layout))
    return {name: 4 * values - 1 if name.endswith("expert_bias") else values for name, values in made.items()}


def write(folder: Path, layout: str, *, shards: int = 1, **changes: Any) -> Path:
    """Writes a checkpoint, in several files with their index if asked for; `changes` are of the configuration."""
    return write_files(folder, {**CONFIGS[layout], **changes}, weights(layout), shards)


def _stub(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


def main() -> None:
    """Prints the logits of the families' own modelling code.

    Usage: `python tests/expert_layouts.py FOLDER`, with transformers 4.57 (later ones cannot run them), and in FOLDER
    the packages `llada2_moe` (`models/llada2_moe` of inclusionAI/dFactory at 92b6890) and `lladamoe`
    (`dllm/pipelines/llada/models` of ZHZisZZ/dllm at ca17675, which holds the file that the authors publish beside
    their weights). LLaDA2 is asked with the mask of blocks that it is trained with, and both ways.
    """
    sys.path.insert(0, sys.argv[1])
    for package in ("veomni", "veomni.distributed", "veomni.utils", "veomni.utils.logging"):
        _stub(package)
    _stub("veomni.ops", causallm_loss_function=None, fused_moe_forward=None)
    _stub("veomni.distributed.parallel_state", get_parallel_state=None)
    _stub("veomni.utils.import_utils", is_liger_kernel_available=lambda: False)
    logging = importlib.import_module("transformers.utils.logging")
    sys.modules["veomni.utils"].logging = logging  # pyright: ignore[reportAttributeAccessIssue]
    x = torch.tensor(TOKENS)
    block = torch.arange(x.shape[1]) // BLOCK
    mask = (
        torch.zeros(len(block), len(block)).masked_fill_(block[:, None] < block, -torch.inf).expand(len(x), 1, -1, -1)
    )
    llada2 = _model("llada2", "llada2_moe.{}_llada2_moe", "LLaDA2Moe", {})
    one = _model("llada2", "llada2_moe.{}_llada2_moe", "LLaDA2Moe", ONE_EXPERT)
    llada_moe = _model("llada-moe", "lladamoe.{}_lladamoe", "LLaDAMoE", {})
    with torch.no_grad():
        found = {
            "llada2": llada2(input_ids=x, attention_mask=mask).logits,
            "llada2 both ways": llada2(input_ids=x, attention_mask=torch.zeros_like(mask)).logits,
            "llada2 one expert": one(input_ids=x, attention_mask=mask).logits,
            "llada-moe": llada_moe(input_ids=x).logits,
        }
    rounded = {
        name: [[[float(f"{value:.9g}") for value in row] for row in rows] for rows in logits.tolist()]
        for name, logits in found.items()
    }
    print(json.dumps(rounded))


def _model(layout: str, module: str, name: str, changes: dict[str, Any]) -> Any:
    kind = getattr(importlib.import_module(module.format("configuration")), f"{name}Config")
    kind.model_type = CONFIGS[layout]["model_type"]  # dFactory's own word stands for experts in one tensor
    config = {key: value for key, value in CONFIGS[layout].items() if key not in ("auto_map", "model_type")} | changes
    model = getattr(importlib.import_module(module.format("modeling")), f"{name}ModelLM")(kind(**config)).eval()
    model.load_state_dict(weights(layout))
    return model


def answers() -> None:
    """Prints the answers of LLaDA2's own `generate`, one token at a time, the surest of the open block first.

    Usage: `python tests/expert_layouts.py FOLDER answers`, with transformers 4.57, and in FOLDER the package
    `llada2_moe` of `dllm/pipelines/llada2/models` in ZHZisZZ/dllm at ca17675, its mask of attention in float32.
    """
    sys.path.insert(0, sys.argv[1])
    model = _model("llada2", "llada2_moe.{}_llada2_moe", "LLaDA2Moe", {})
    generator = torch.Generator().manual_seed(7)
    found = []
    for length in (5, 8, 3, 11):
        prompt = torch.randint(0, END, (1, length), generator=generator)
        new = 12 + -(length + 12) % BLOCK  # the last block is whole, as it is filled whole
        settings = {"block_length": BLOCK, "steps": BLOCK, "gen_length": new, "threshold": 2.0}
        (answer,) = model.generate(prompt, temperature=0.0, eos_id=VOCAB, mask_id=MASK, **settings).tolist()
        found.append([*prompt.tolist(), answer])
    print(json.dumps(found))


if __name__ == "__main__":
    answers() if sys.argv[2:] else main()

"""Tiny checkpoints in the layouts of the families that are not LLaDA's or Dream's own; weights are functions of names.

Run as a program it asks the families' own modelling code for its logits (see `main`), which is how
`data/block-logits.json` was made.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from layouts import END, INNER, LAYERS, MASK, TOKENS, VOCAB, WIDTH, seeded, write_files
from torch import Tensor, nn

HEADS, KEY_HEADS, EXPERTS, EXPERT_INNER, SIZE = 4, 2, 4, 24, 4

_SIZES: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": END,
    "eos_token_id": END,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": 256,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEY_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "vocab_size": VOCAB,
}
_WINDOWS: dict[str, Any] = {"max_window_layers": LAYERS, "sliding_window": None, "use_sliding_window": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "sdar": {
        **_SIZES,
        **_WINDOWS,
        "architectures": ["SDARForCausalLM"],
        "attention_bias": False,
        "attn_implementation": "flex_attention",
        "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
        "block_size": SIZE,
        "debug": False,
        "ep_size": 1,
        "fuse_cross_entropy": True,
        "head_dim": 16,
        "mask_token_id": MASK,
        "micro_forward": False,
        "model_type": "sdar",
        "skip_checkpoint": False,
        "use_deepep": False,
    },
    "sdar_moe": {
        **_SIZES,
        **_WINDOWS,
        "architectures": ["SDARMoeForCausalLM"],
        "attention_bias": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM"},
        "block_size": SIZE,
        "decoder_sparse_step": 1,
        "head_dim": 16,
        "mask_token_id": MASK,
        "mlp_only_layers": [],
        "model_type": "sdar_moe",
        "moe_intermediate_size": EXPERT_INNER,
        "norm_topk_prob": True,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    "fast_dllm": {
        **_SIZES,
        **_WINDOWS,
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
        "bd_size": SIZE,
        "mask_token_id": MASK,
        "model_type": "Fast_dLLM_Qwen",
    },
    "dream_reasoner": {
        **_SIZES,
        **_WINDOWS,
        "architectures": ["DreamForCausalLM"],
        "attention_bias": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_dream.DreamForCausalLM"},
        "block_size": SIZE,
        "head_dim": None,
        "mask_token_id": MASK,
        "model_type": "Dream",
    },
    "illada": {
        **_SIZES,
        "architectures": ["ILLaDAForCausalLM"],
        "attention_bias": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM"},
        "layer_norm_eps": None,
        "mlp_bias": False,
        "model_type": "illada",
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
    },
}

NEW = 11
PROMPTS = [
    [(7 * place + 5 * token * token) % 37 for token in range(length)]
    for place, length in enumerate((1, 3, 6, 9, 13, 2, 7, 10, 5, 15))
]
"""Of lengths that are no block: Fast-dLLM's own generation does not look at a prompt of one block."""

OPTIONS: dict[str, dict[str, Any]] = {"illada": {"mask_id": MASK}}
"""What a tiny checkpoint has to be loaded with: the mask tokens of the published ones are outside its vocabulary."""


def head_dim(layout: str) -> int:
    """Width of a head."""
    return CONFIGS[layout].get("head_dim") or WIDTH // HEADS


def shapes(layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint."""
    head = head_dim(layout)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    found["lm_head.weight"] = (VOCAB, WIDTH)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found |= {f"{at}{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
            found[f"{at}self_attn.{name}_proj.weight"] = (heads * head, WIDTH)
            if layout == "fast_dllm":
                found[f"{at}self_attn.{name}_proj.bias"] = (heads * head,)
        found[f"{at}self_attn.o_proj.weight"] = (WIDTH, HEADS * head)
        if layout in ("sdar", "sdar_moe", "dream_reasoner"):
            found |= {f"{at}self_attn.{name}_norm.weight": (head,) for name in ("q", "k")}
        if layout == "sdar_moe":
            found[f"{at}mlp.gate.weight"] = (EXPERTS, WIDTH)
            for expert in range(EXPERTS):
                found |= _feed_forward(f"{at}mlp.experts.{expert}.", EXPERT_INNER)
        else:
            found |= _feed_forward(f"{at}mlp.", INNER)
    return found


def _feed_forward(at: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}gate_proj.weight": (inner, WIDTH),
        f"{at}up_proj.weight": (inner, WIDTH),
        f"{at}down_proj.weight": (WIDTH, inner),
    }


def weights(layout: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint: normal, seeded by their names; norms are around 1."""
    made = seeded(shapes(layout))
    if CONFIGS[layout]["tie_word_embeddings"]:
        made["lm_head.weight"] = made["model.embed_tokens.weight"].clone()
    return made


def write_block_model(folder: Path, layout: str, *, shards: int = 1, **changes: Any) -> Path:
    """Writes a checkpoint, in several files with their index if asked for; `changes` are of the configuration."""
    return write_files(folder, {**CONFIGS[layout], **changes}, weights(layout), shards)


def block_mask(length: int) -> Tensor:
    """Which positions (columns) each position (row) looks at."""
    block = torch.arange(length) // SIZE
    return block.unsqueeze(-1) >= block


def main() -> None:
    """Writes the logits of the families' own modelling code, and answers of their own generation.

    Usage: `python tests/block_layouts.py FOLDER`, with transformers 4.53.3 and einops. In FOLDER, with an empty
    `__init__.py` in each folder of its own:

    - `sdar/modeling_sdar.py`, `sdar/configuration_sdar.py`: JetAstra/SDAR c2041a8, training/model/SDAR-4B-Chat;
    - `sdar_moe/modeling_sdar_moe.py`: PKU-SEC-Lab/TEAM-MoE-dLLM, the published file with more arguments;
    - `modeling_fast.py`, `configuration_fast.py`: phymhan/S2D2 279500a, Fast-dLLM-v2;
    - `sdar_generate.py`: `SDAR/generate.py` there, which has an argmax beside what SDAR's own has;
    - `illada/modeling_illada.py`: GSAI-ML/iLLaDA-8B-Base; its configuration class is made here;
    - `diffulex`: SJTU-DENG-Lab/Diffulex 184ba97, for DreamReasoner, whose own file is on the hub only.

    Fast-dLLM's logits are shifted as its own generation does.
    """
    sys.path.insert(0, sys.argv[1])
    _stand_in(Path(sys.argv[1]))
    x = torch.tensor(TOKENS)
    mask = block_mask(x.shape[1])
    found, answers = {"dream_reasoner": _diffulex(x, mask)}, {}
    for layout in ("sdar", "sdar_moe", "fast_dllm", "illada"):
        config, auto = _reference(layout)
        fields = {
            key: value for key, value in CONFIGS[layout].items() if key not in ("auto_map", "attn_implementation")
        }
        model = auto(config(**fields)).eval()
        model.load_state_dict(weights(layout))
        given: dict[str, Any] = {"attention_mask": mask[None], "store_kv": False} if "sdar" in layout else {}
        given |= {"block_size": SIZE} if layout == "fast_dllm" else {}
        with torch.no_grad():
            answer = model(input_ids=x, **given)
        logits = _first(answer).logits
        found[layout] = torch.cat([logits[:, :1], logits[:, :-1]], 1) if layout == "fast_dllm" else logits
        if layout != "illada":
            answers[layout] = [_answer(model, layout, prompt) for prompt in PROMPTS]
    rounded = {
        name: [[[float(f"{value:.8g}") for value in row] for row in rows] for rows in found[name].tolist()]
        for name in sorted(found)
    }
    data = Path(__file__).parent / "data"
    (data / "block-logits.json").write_text(json.dumps(rounded) + "\n")
    (data / "block-answers.json").write_text(json.dumps(answers) + "\n")


def _answer(model: Any, layout: str, prompt: list[int]) -> list[int]:
    """An answer by the argmax: SDAR's from the surest position on, Fast-dLLM's from left to right; never the mask."""
    hook = model.lm_head.register_forward_hook(
        lambda _, args, output: output.index_fill(-1, torch.tensor(MASK), -torch.inf)
    )
    given = torch.tensor([prompt])
    if layout == "fast_dllm":
        how = {"mask_id": MASK, "block_size": SIZE, "small_block_size": 1, "stop_token": -1}
        found = model.generate(given, max_new_tokens=NEW + 2 * SIZE, **how)
    else:
        evaluate = model.forward
        model.forward = lambda *args, **options: _first(evaluate(*args, **options))
        how = {"mask_id": MASK, "block_length": SIZE, "denoising_steps": SIZE, "do_sample": False}
        generate = _imported("sdar_generate").block_diffusion_generate
        found = generate(model, given, gen_length=NEW, remasking_strategy="low_confidence_static", **how)
        model.forward = evaluate
    hook.remove()
    return found[0, len(prompt) : len(prompt) + NEW].tolist()


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def _diffulex(x: Tensor, mask: Tensor) -> Tensor:
    """The logits of Diffulex's DreamReasoner, on a processor: attention by its own reference, one row at a time."""
    state = _imported("diffulex.distributed.parallel_state")
    state.PARALLEL_STATE = state.build_parallel_state_for_test(
        tp_size=1, ep_size=1, dp_size=1, world_size=1, global_rank=0
    )
    attend = _imported("diffulex.attention.attn_impl").reference_torch_attention

    class Attention(nn.Module):
        def __init__(self, heads: int, _: int, scale: float, key_heads: int, **__: Any) -> None:
            super().__init__()
            self.how = {"num_heads": heads, "num_kv_heads": key_heads, "scale": scale}

        def forward(self, query: Tensor, key: Tensor, value: Tensor, look: Tensor) -> Tensor:
            return attend(query, key, value, mask=look, **self.how).flatten(1)

    found = _imported("diffulex.model.dream_reasoner")
    found.Attention = Attention
    model = found.DreamReasonerForDiffusionLM(types.SimpleNamespace(**CONFIGS["dream_reasoner"])).eval()
    model.load_state_dict(weights("dream_reasoner"))
    look = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    with torch.no_grad():
        return torch.stack([model(row, torch.arange(len(row)), look) @ model.lm_head.weight.T for row in x])


def _imported(name: str) -> Any:
    return importlib.import_module(name)


def _reference(layout: str) -> tuple[Any, Any]:
    if layout == "sdar":
        found = _imported("sdar.modeling_sdar")
        return found.SDARConfig, found.SDARForCausalLM
    if layout == "sdar_moe":
        found = _imported("sdar_moe.modeling_sdar_moe")
        return found.SDARMoeConfig, found.SDARMoeForCausalLM
    if layout == "illada":
        found = _imported("illada.modeling_illada")
        return found.ILLaDAConfig, found.ILLaDAForCausalLM
    found = _imported("modeling_fast")
    return found.Fast_dLLM_QwenConfig, found.Fast_dLLM_QwenForCausalLM


def _stand_in(folder: Path) -> None:
    """Puts what the code imports and a processor has not, or is not published, in its place."""
    os.environ |= {"TORCHDYNAMO_DISABLE": "1", "DIFFULEX_REFERENCE_RMSNORM": "1"}
    from transformers import PretrainedConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

    assert Qwen3MoeForCausalLM  # imported before what it looks for, in vain, is there

    def module(name: str, **what: Any) -> None:
        made = types.ModuleType(name)
        for key, value in what.items():
            setattr(made, key, value)
        sys.modules[name] = made

    def norm(x: Tensor, weight: Tensor, bias: None, eps: float) -> Tensor:
        return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    kernels = dict.fromkeys(("store_kv_cache_distinct_layout", "store_kv_cache_unified_layout"))
    module("diffulex_kernel", chunked_prefill_attn_unified=None, chunked_prefill_attn_grouped_unified=None, **kernels)
    for name in ("diffulex", "diffulex.model"):
        module(name, __path__=[str(folder / name.replace(".", "/"))])

    def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, softmax_scale: float) -> Tensor:
        heads = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        found = nn.functional.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], is_causal=causal, scale=softmax_scale, enable_gqa=True
        )
        return found.transpose(1, 2)

    for name in ("flash_attn", "flash_attn.ops", "flash_attn.ops.triton"):
        module(name, flash_attn_func=attend, flash_attn_varlen_func=None)
    module("flash_attn.bert_padding", index_first_axis=None, pad_input=None, unpad_input=None)
    module("flash_attn.ops.triton.layer_norm", rms_norm_fn=norm)
    module("sdar.fused_linear_diffusion_cross_entropy", FusedLinearDiffusionCrossEntropyLoss=None)
    module("sdar_moe.configuration_sdar_moe", SDARMoeConfig=type("SDARMoeConfig", (Qwen3MoeConfig,), {}))
    module(
        "illada.configuration_illada",
        ILLaDAConfig=type("ILLaDAConfig", (PretrainedConfig,), {"model_type": "illada", "pad_token_id": None}),
    )


if __name__ == "__main__":
    main()

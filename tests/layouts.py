"""Tiny language models in the layouts of real ones, made on the spot; every weight is a function of its name.

Run as a program it asks the reference implementations for their logits (see `main`), which is how
`data/reference-logits.json` was made.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import torch
from rounding import allowed
from safetensors.torch import save_file
from torch import Tensor

WIDTH, INNER, LAYERS, VOCAB, MASK, END = 32, 48, 2, 40, 39, 38

ROUNDING = allowed(LAYERS * (2 * WIDTH + INNER), 4.0)
"""How far logits of these models may be apart for rounding alone, 1e-4: they are around 4, and each is a sum of so many
terms, in each layer those into attention and the feed-forward part and those out of it."""

LLADA: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
    "activation_type": "silu",
    "alibi": False,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": WIDTH,
    "embedding_dropout": 0.0,
    "embedding_size": VOCAB,
    "eos_token_id": END,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": MASK,
    "max_sequence_length": 64,
    "mlp_hidden_size": INNER,
    "mlp_ratio": 4,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": LAYERS,
    "pad_token_id": END,
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": VOCAB,
    "weight_tying": False,
}

DREAM: dict[str, Any] = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "attention_dropout": 0.0,
    "bos_token_id": END,
    "eos_token_id": END,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "mask_token_id": MASK,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "pad_token_id": END,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}

TOKENS = [[5, 17, 3, MASK, MASK, 8, MASK, 21, 0, MASK, 11, MASK], [MASK, MASK, 2, 9, 9, MASK, 30, 1, MASK, 4, 25, 7]]


def shapes(layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint: `"llada"` or `"dream"`, whose names are Qwen2's."""
    found: dict[str, tuple[int, ...]] = {}
    if layout == "llada":
        found |= {f"model.transformer.{name}.weight": (VOCAB, WIDTH) for name in ("wte", "ff_out")}
        found["model.transformer.ln_f.weight"] = (WIDTH,)
        for layer in range(LAYERS):
            at = f"model.transformer.blocks.{layer}."
            found |= {f"{at}{name}.weight": (WIDTH,) for name in ("attn_norm", "ff_norm")}
            found |= {f"{at}{name}.weight": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
            found |= {f"{at}{name}.weight": (INNER, WIDTH) for name in ("ff_proj", "up_proj")}
            found[f"{at}ff_out.weight"] = (WIDTH, INNER)
        return found
    found |= {f"{name}.weight": (VOCAB, WIDTH) for name in ("model.embed_tokens", "lm_head")}
    found["model.norm.weight"] = (WIDTH,)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found |= {f"{at}{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, size in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2)):
            found |= {f"{at}self_attn.{name}_proj.weight": (size, WIDTH), f"{at}self_attn.{name}_proj.bias": (size,)}
        found[f"{at}self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        found |= {f"{at}mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found[f"{at}mlp.down_proj.weight"] = (WIDTH, INNER)
    return found


def weights(layout: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint."""
    return seeded(shapes(layout))


def seeded(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors that are functions of their names: normal; norms are around 1."""
    made = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=generator)
        made[name] = 1 + values / 10 if "norm" in name or "ln_f" in name else values / 4
    return made


def write(folder: Path, layout: str, *, shards: int = 1, **changes: Any) -> Path:
    """Writes a checkpoint, in several files with their index if asked for; `changes` are of the configuration."""
    return write_files(folder, {**(LLADA if layout == "llada" else DREAM), **changes}, weights(layout), shards)


def write_files(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1) -> Path:
    """Writes a configuration without what is `"absent"`, and tensors, in several files with their index or in one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    index: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_text_model(folder: Path) -> Path:
    """Writes an untrained model in LLaDA's layout with the tokenizer of the instructions, for up to 64 tokens."""
    from unmask.models.pretrained.llada import new_llada, save_llada
    from unmask.tasks.instructions import END_ID, InstructionTask, save_tokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = InstructionTask()
        sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 48}
        network = new_llada(sizes, task.vocab_size, task.mask_id, 64, None)
        for weight in network.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
    save_llada(folder, network, {"task": None}, end_id=END_ID)
    save_tokenizer(folder)
    return folder


def main() -> None:
    """Prints the logits of the reference implementations, `llada/model` and `dream/model` of NVlabs/Fast-dLLM.

    Usage: `python tests/layouts.py FOLDER`, with these two in FOLDER, and transformers 4.51: later ones cannot run
    them. Dream's logits are shifted as its own generation does. The commit was 24cc59e.
    """
    sys.path.insert(0, sys.argv[1])
    stub = types.ModuleType("einops")
    stub.rearrange = None  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["einops"] = stub  # imported there, and used for caches only
    x = torch.tensor(TOKENS)
    llada = importlib.import_module("llada.model")
    config = llada.LLaDAConfig(**{k: v for k, v in LLADA.items() if k not in ("auto_map", "architectures")})
    model = llada.LLaDAModelLM(config, init_params=True).eval()
    model.load_state_dict(weights("llada"))
    dream_config = importlib.import_module("dream.model.configuration_dream")
    dream = importlib.import_module("dream.model.modeling_dream")
    other = dream.DreamModel(dream_config.DreamConfig(**{k: v for k, v in DREAM.items() if k != "auto_map"})).eval()
    other.load_state_dict(weights("dream"))
    with torch.no_grad():
        plain = model(input_ids=x).logits
        raw = other(input_ids=x).logits
        shifted = torch.cat([raw[:, :1], raw[:, :-1]], dim=1)
    rounded = {
        name: [[[float(f"{value:.9g}") for value in row] for row in rows] for rows in logits.tolist()]
        for name, logits in (("llada", plain), ("dream", shifted))
    }
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()

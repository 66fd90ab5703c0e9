"""A tiny MDLM and BD3LM in the layouts of real ones, made on the spot; every weight is a function of its name.

Run as a program it asks their own code for its logits (see `main`), which is how `data/dit-logits.json` was made.
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
from torch import Tensor

WIDTH, TIME, LAYERS, HEADS, VOCAB, LENGTH, BLOCK = 32, 16, 2, 4, 40, 64, 4
MASK = VOCAB - 1

_SIZES: dict[str, Any] = {
    "cond_dim": TIME,
    "dropout": 0.1,
    "hidden_dim": WIDTH,
    "model_length": LENGTH,
    "n_blocks": LAYERS,
    "n_heads": HEADS,
    "time_conditioning": False,
    "torch_dtype": "float32",
    "vocab_size": VOCAB,
}

MDLM: dict[str, Any] = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "return_dict": False,
    **_SIZES,
}

BD3LM: dict[str, Any] = {
    "model_type": "bd3lm",
    "architectures": ["BD3LM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_bd3lm.BD3LM"},
    "adaln": False,
    "attn_backend": "sdpa",
    "block_size": BLOCK,
    "causal": False,
    "cross_attn": True,
    "sampling_eps_max": 0.999,
    "sampling_eps_min": 0.001,
    "var_min": True,
    **_SIZES,
}

CONFIGS = {"mdlm": MDLM, "bd3lm": BD3LM, "bd3lm, adaln": {**BD3LM, "adaln": True}}

TOKENS = [
    [5, 17, 3, MASK, MASK, 8, MASK, 21, 0, MASK, 11, MASK],
    [MASK, MASK, 2, 9, 9, MASK, 30, 1, MASK, 4, 25, 7],
]


def shapes(layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint."""

    def layer(at: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{at}.weight": (out, into), f"{at}.bias": (out,)}

    told = CONFIGS[layout].get("adaln", True)
    found: dict[str, tuple[int, ...]] = {"backbone.vocab_embed.embedding": (VOCAB, WIDTH)}
    if told:
        found |= layer("backbone.sigma_map.mlp.0", TIME, 256) | layer("backbone.sigma_map.mlp.2", TIME, TIME)
    for number in range(LAYERS):
        at = f"backbone.blocks.{number}."
        found |= {f"{at}norm1.weight": (WIDTH,), f"{at}norm2.weight": (WIDTH,)}
        found |= {f"{at}attn_qkv.weight": (3 * WIDTH, WIDTH), f"{at}attn_out.weight": (WIDTH, WIDTH)}
        found |= layer(f"{at}mlp.0", 4 * WIDTH, WIDTH) | layer(f"{at}mlp.2", WIDTH, 4 * WIDTH)
        found |= layer(f"{at}adaLN_modulation", 6 * WIDTH, TIME) if told else {}
    found["backbone.output_layer.norm_final.weight"] = (WIDTH,)
    found |= layer("backbone.output_layer.linear", VOCAB, WIDTH)
    return found | (layer("backbone.output_layer.adaLN_modulation", 2 * WIDTH, TIME) if told else {})


def weights(layout: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, with the buffers that the families' own code keeps in it."""
    size = WIDTH // HEADS
    buffers = {"backbone.rotary_emb.inv_freq": 10000.0 ** -(torch.arange(0, size, 2) / size)}
    if layout != "mdlm":
        buffers |= {f"sampling_eps_{name}": torch.tensor(BD3LM[f"sampling_eps_{name}"]) for name in ("min", "max")}
    return seeded(shapes(layout)) | buffers


def write(folder: Path, layout: str, *, shards: int = 1, **changes: Any) -> Path:
    """Writes a checkpoint, in several files with their index if asked for; `changes` are of the configuration."""
    return write_files(folder, {**CONFIGS[layout], **changes}, weights(layout), shards)


def _turned(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What flash-attn's rotary embedding computes: queries and keys are turned, half by half."""
    cos, sin = (torch.cat([one, one], dim=-1)[None, :, None] for one in (cos, sin))
    first, second = qkv[:, :, :2].chunk(2, dim=-1)
    turned = qkv[:, :, :2] * cos.unsqueeze(2) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(2)
    return torch.cat([turned, qkv[:, :, 2:]], dim=2)


def _attended(qkv: Tensor, ends: Tensor, length: int, dropout: float, causal: bool) -> Tensor:
    """What flash-attn's attention computes of sequences of one length."""
    query, key, value = qkv.unflatten(0, (-1, length)).transpose(1, 3).unbind(2)
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return found.transpose(1, 2).flatten(0, 1)


def _module(name: str) -> Any:
    return types.ModuleType(name)


def main() -> None:
    """Prints the logits of the families' own code.

    Usage: `python tests/dit_layouts.py FOLDER`, with einops, omegaconf and transformers 4.57, and in FOLDER `dit.py`
    (`models/dit.py` of kuleshov-group/mdlm at c112c52) and the package `bd3lm` (`models/hf` of kuleshov-group/bd3lms
    at 1c3e8f4). What MDLM's code takes from flash-attn, which needs a GPU, is computed by two functions here.
    """
    sys.path.insert(0, sys.argv[1])
    configuring = importlib.import_module("bd3lm.configuration_bd3lm")
    modelling = importlib.import_module("bd3lm.modeling_bd3lm")
    rotary, layers, interface, flash = (_module(name) for name in ("rotary", "layers", "interface", "flash_attn"))
    rotary.apply_rotary_emb_qkv_, interface.flash_attn_varlen_qkvpacked_func = _turned, _attended
    layers.rotary, flash.layers, flash.flash_attn_interface = rotary, layers, interface
    sys.modules |= {"flash_attn": flash, "flash_attn.layers": layers, "flash_attn.layers.rotary": rotary}
    x, zero = torch.tensor(TOKENS), torch.zeros(len(TOKENS))
    sizes = {"hidden_size": WIDTH, "cond_dim": TIME, "n_blocks": LAYERS, "n_heads": HEADS, "dropout": 0.1}
    mdlm = importlib.import_module("dit").DIT({"model": {**sizes, "scale_by_sigma": True}}, VOCAB).eval()
    mdlm.load_state_dict({name.removeprefix("backbone."): one for name, one in weights("mdlm").items()})
    found = {}
    with torch.no_grad():
        found["mdlm"] = mdlm(x, zero)
        for layout in ("bd3lm", "bd3lm, adaln"):
            config = {key: value for key, value in CONFIGS[layout].items() if key != "auto_map"}
            model = modelling.BD3LM(configuring.BD3LMConfig(**config)).eval()
            model.load_state_dict(weights(layout))
            found[layout] = model(x, zero, sample_mode=True, return_dict=True).logits
    rounded = {
        name: [[[float(f"{value:.9g}") for value in row] for row in rows] for rows in logits.tolist()]
        for name, logits in found.items()
    }
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()

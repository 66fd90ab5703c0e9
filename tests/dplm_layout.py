"""A tiny DPLM, a protein language model, in the layout of the real ones; every weight is a function of its name.

Run as a program it asks DPLM's own code for its logits (see `main`), which is how `data/dplm-logits.json` was made.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from layouts import seeded, write_files
from torch import Tensor

WIDTH, INNER, LAYERS = 32, 48, 2
VOCABULARY = [
    *("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"),
]
PAD, MASK = VOCABULARY.index("<pad>"), VOCABULARY.index("<mask>")

CONFIG: dict[str, Any] = {
    "model_type": "esm",
    "architectures": ["EsmForDPLM"],
    "dplm_type": "dplm_esm",
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": None,
    "emb_layer_norm_before": False,
    "esmfold_config": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "is_folding_model": False,
    "layer_norm_eps": 1e-5,
    "mask_token_id": MASK,
    "max_position_embeddings": 1026,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "pad_token_id": PAD,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "torch_dtype": "float32",
    "transformers_version": "4.39.2",
    "use_cache": True,
    "vocab_list": None,
    "vocab_size": len(VOCABULARY),
}
"""ESM-2's fields, which DPLM keeps, and its own `dplm_type`."""

TOKENS = [
    [0, 5, MASK, 9, MASK, MASK, 14, 4, MASK, 2],
    [0, MASK, 6, MASK, 11, 2, PAD, PAD, PAD, PAD],
]


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint, those of `EsmForMaskedLM`."""

    def layer(at: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{at}.weight": (out, into), f"{at}.bias": (out,)}

    def norm(at: str) -> dict[str, tuple[int, ...]]:
        return {f"{at}.weight": (WIDTH,), f"{at}.bias": (WIDTH,)}

    found: dict[str, tuple[int, ...]] = {"esm.embeddings.word_embeddings.weight": (len(VOCABULARY), WIDTH)}
    found["esm.embeddings.position_embeddings.weight"] = (1026, WIDTH)
    for number in range(LAYERS):
        at = f"esm.encoder.layer.{number}."
        for name in ("query", "key", "value"):
            found |= layer(f"{at}attention.self.{name}", WIDTH, WIDTH)
        found |= layer(f"{at}attention.output.dense", WIDTH, WIDTH)
        found |= layer(f"{at}intermediate.dense", INNER, WIDTH) | layer(f"{at}output.dense", WIDTH, INNER)
        found |= norm(f"{at}LayerNorm") | norm(f"{at}attention.LayerNorm")
        found[f"{at}attention.self.rotary_embeddings.inv_freq"] = (WIDTH // 8,)
    found |= norm("esm.encoder.emb_layer_norm_after")
    found |= layer("esm.contact_head.regression", 1, LAYERS * 4)
    found |= layer("lm_head.dense", WIDTH, WIDTH) | norm("lm_head.layer_norm")
    found["lm_head.bias"] = (len(VOCABULARY),)
    return found


def weights() -> dict[str, Tensor]:
    """The tensors of a checkpoint."""
    made = seeded(shapes())
    steps = torch.arange(0, WIDTH // 4, 2) / (WIDTH // 4)
    return {name: 10000.0**-steps if name.endswith("inv_freq") else tensor for name, tensor in made.items()}


def write(folder: Path, **changes: Any) -> Path:
    """Writes a checkpoint with its tokenizer; `changes` are of the configuration."""
    write_files(folder, {**CONFIG, **changes}, weights())
    write_vocabulary(folder)
    return folder


def write_vocabulary(folder: Path) -> None:
    """Writes ESM's tokenizer."""
    names = {"cls_token": "<cls>", "eos_token": "<eos>", "mask_token": "<mask>", "pad_token": "<pad>"}
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer", **names}))


def main() -> None:
    """Prints the logits of `EsmForDPLM`, with and without `token_dropout`.

    Usage: `python tests/dplm_layout.py FILE`, with transformers 4.39.2, and FILE the `dplm_modeling_esm.py` of
    bytedance/dplm at 8b3425b.
    """
    stub = types.ModuleType("byprot.models")
    stub.register_model = lambda name: lambda kind: kind  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules |= {"byprot": types.ModuleType("byprot"), "byprot.models": stub}
    sys.path.insert(0, str(Path(sys.argv[1]).parent))
    kind = importlib.import_module(Path(sys.argv[1]).stem).EsmForDPLM
    found = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        write_vocabulary(Path(folder))
        for dropout in (True, False):
            config = importlib.import_module("transformers").EsmConfig(**{**CONFIG, "token_dropout": dropout})
            config._name_or_path = folder
            model = kind(config).eval()
            missing, unexpected = model.load_state_dict(weights(), strict=False)
            assert (missing, unexpected) == (["lm_head.decoder.weight"], []), (missing, unexpected)
            logits = model(torch.tensor(TOKENS))["logits"]
            found[f"token_dropout {dropout}"] = [
                [[float(f"{value:.9g}") for value in row] for row in rows] for rows in logits.tolist()
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()

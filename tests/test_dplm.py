"""DPLM, which is an ESM that unmasks: the library's own class computes what its code computes."""

import json
from pathlib import Path

import pytest
import torch
from dplm_layout import MASK, PAD, TOKENS, VOCABULARY, weights, write

import unmask
from unmask.denoiser import Query
from unmask.errors import AdapterError
from unmask.rules.named import named_rule

REFERENCE = json.loads((Path(__file__).parent / "data" / "dplm-logits.json").read_text())
KNOWN = [token for token in range(len(VOCABULARY)) if token != MASK]


@pytest.mark.parametrize("dropout", [True, False])
def test_logits_are_those_of_the_familys_own_code(dropout, tmp_path):
    denoiser = unmask.load(write(tmp_path, token_dropout=dropout))
    assert denoiser.mask_id == MASK
    x = torch.tensor(TOKENS)
    query = Query(x, x == MASK, x != PAD, torch.arange(2))
    expected = torch.tensor(REFERENCE[f"token_dropout {dropout}"])[query.where]
    assert (denoiser(query) - expected)[:, KNOWN].abs().max() < 1e-5
    assert expected[:, KNOWN].std() > 0.5  # not a comparison of zeros


def test_a_protein_is_filled_in(tmp_path):
    model = unmask.load(write(tmp_path))
    ids = [0, *[MASK] * 12, 2]
    found = unmask.sample(model, torch.tensor([ids]), named_rule("entropy-bound:gamma=1").rule, seed=0)
    assert MASK not in found.sequences[0]
    assert (found.sequences[0][0], found.sequences[0][-1]) == (0, 2)


def test_pickled_weights_are_refused(tmp_path):
    folder = write(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(weights(), folder / "pytorch_model.bin")
    with pytest.raises(AdapterError, match=r"has no model.safetensors; other formats can run code when they are read"):
        unmask.load(folder)

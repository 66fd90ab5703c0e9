"""Oracles (exact denoisers of known distributions), and the exact law of a sampler."""

from .chain import HMMDenoiser, MarkovDenoiser, random_hmm, random_markov
from .law import Law, exact_law, pearson
from .oracle import Oracle
from .perturbed import PerturbedDenoiser
from .table import Sudoku4Denoiser, SupportDenoiser, TableDenoiser, parity_table, random_table, sudoku4_grids

__all__ = [
    "HMMDenoiser",
    "Law",
    "MarkovDenoiser",
    "Oracle",
    "PerturbedDenoiser",
    "Sudoku4Denoiser",
    "SupportDenoiser",
    "TableDenoiser",
    "exact_law",
    "parity_table",
    "pearson",
    "random_hmm",
    "random_markov",
    "random_table",
    "sudoku4_grids",
]

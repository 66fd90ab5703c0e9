"""Language models that unmask: text in, text out, on the one sampling loop."""

from .completion import Completion
from .model import LanguageModel
from .prompts import Prompt

__all__ = ["Completion", "LanguageModel", "Prompt"]

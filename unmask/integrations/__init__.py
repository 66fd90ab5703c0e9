"""Integrations into other libraries, whose loops call this package: Transformers, lm-eval, diffusers, SGLang."""

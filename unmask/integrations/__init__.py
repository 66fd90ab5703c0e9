"""Other libraries whose loops call us: Transformers, lm-eval, diffusers, SGLang."""

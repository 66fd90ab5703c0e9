"""Models of the Transformers library as denoisers and judges, and the conventions of their families."""

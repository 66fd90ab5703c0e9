"""Models of the Transformers library as denoisers and judges; each module absorbs the conventions of one family."""

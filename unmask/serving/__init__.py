"""`unmask serve`: answers requests of OpenAI's clients; many share the forward passes of a model."""

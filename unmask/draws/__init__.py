"""Draws from categorical distributions: statistics without cancellation, counter-based uniforms, fused kernels."""

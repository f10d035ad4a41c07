"""Passes that perform a plan: weights, activations and the KV cache are quantized as it says."""

"""GGUF files: their header, and transformers' names for its configuration and tensors."""

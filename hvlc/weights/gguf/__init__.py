"""GGUF files: what their header says, and what transformers calls the things in it."""

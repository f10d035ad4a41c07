"""The reference checkpoints that hvlc ships, and the documents they were trained on."""

from __future__ import annotations

from pathlib import Path


def nano_checkpoint() -> Path:
    """Directory of `hypervl-nano`: safetensors, configuration, tokenizer, processor, model card."""
    return Path(__file__).parent / "hypervl-nano"


def smolvlm_checkpoint() -> Path:
    """Directory of `smolvlm-nano`, of a public architecture: the same files."""
    return Path(__file__).parent / "smolvlm-nano"


def qwen3vl_checkpoint() -> Path:
    """Directory of `qwen3vl-nano`, of a public architecture with DeepStack: the same files."""
    return Path(__file__).parent / "qwen3vl-nano"

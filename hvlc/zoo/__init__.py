"""The reference checkpoint that hvlc ships, and the documents it was trained on."""

from __future__ import annotations

from pathlib import Path


def nano_checkpoint() -> Path:
    """Directory of `hypervl-nano`: safetensors, configuration, tokenizer, processor, model card."""
    return Path(__file__).parent / "hypervl-nano"

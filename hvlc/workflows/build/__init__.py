"""Checkpoint to package."""

"""Passes that fuse operators."""

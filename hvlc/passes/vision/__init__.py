"""Passes of dynamic vision: tiles, compressor, encoder choice."""

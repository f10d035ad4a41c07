"""Decoders, part by part: `graph` puts them together, `shape` says which parts a decoder has."""

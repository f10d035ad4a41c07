"""Quantization recipes: schema, resolver, and the shipped *.yaml."""

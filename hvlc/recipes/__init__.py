"""Quantization recipes: the schema, the resolver that makes a plan of them, and the shipped *.yaml files."""

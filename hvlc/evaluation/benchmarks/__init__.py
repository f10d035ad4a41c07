"""Public benchmarks in the layouts in which they are published, read from a local directory.

Each has its own metric and normalization (`scores`), so that a number can be put beside a published one. Nothing is
fetched: whoever has a benchmark names its directory.
"""

"""Image rules: how a family cuts an image into pieces and which tokens stand for it, as graphs.

A rule builds the front graph of a package: decoded RGB in; normalized pieces, token ids, grid and used scale out. As a
graph it runs the same in Python, Kotlin and Swift.
"""

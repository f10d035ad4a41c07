"""Passes that rewrite operators which a target does not support into operators which it does."""

"""Bisection of a package that departs from its reference."""

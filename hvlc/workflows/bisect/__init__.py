"""Where a package departs from its reference."""

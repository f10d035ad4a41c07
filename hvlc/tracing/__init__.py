"""One question, seen at every stage of a package."""

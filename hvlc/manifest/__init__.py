"""What a package says of itself, and what it was made from."""

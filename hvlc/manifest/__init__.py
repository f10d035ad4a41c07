"""Records of a package: its manifest, and the lock of what it was made from."""

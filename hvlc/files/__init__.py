"""How hvlc opens and writes files: regular files alone, within bounds, with errors that name the place."""

"""Opening and writing of files: regular files alone, within bounds, with errors that name the place."""

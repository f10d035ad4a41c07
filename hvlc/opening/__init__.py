"""Opening packages that others wrote: what a library is given is what this version writes, and the rest is refused."""

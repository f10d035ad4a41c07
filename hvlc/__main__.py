"""`python -m hvlc`."""

from hvlc.cli import main

main()

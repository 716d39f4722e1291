"""`python -m mocomp`."""

from mocomp.cli import main

main()

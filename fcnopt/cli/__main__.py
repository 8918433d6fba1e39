"""`python -m fcnopt.cli`."""

from fcnopt.cli import main

main()

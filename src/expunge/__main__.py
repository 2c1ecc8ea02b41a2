"""``python -m expunge``: the command line, for launchers that start modules."""

from expunge.cli import main

main()

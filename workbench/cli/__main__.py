"""`python -m workbench.cli`: the command where no script is installed."""

from workbench.cli import main

main()

"""`python -m smtkit.cli`: the `smtkit` command, as torchrun starts it."""

from smtkit.cli.app import main

main()

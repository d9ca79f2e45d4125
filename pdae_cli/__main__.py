"""`python -m pdae_cli`: the same as `pdae`."""

from .cli import main

main()

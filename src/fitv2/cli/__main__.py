"""`python -m fitv2.cli`, for launchers such as torchrun."""

from . import main

main()

"""`python -m diffmem` is `diffmem`."""

from diffmem.cli import main

main()

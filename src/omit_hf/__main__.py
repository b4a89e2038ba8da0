"""`python -m omit_hf`, which is `omit-hf`."""

from omit_hf_command import main

main()

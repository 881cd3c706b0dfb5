"""`python -m rlhf_core` is the command `rlhf`."""

from rlhf_core.cli import main

if __name__ == "__main__":
    main()

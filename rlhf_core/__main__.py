"""`python -m rlhf_core` is the command `rlhf`."""

from rlhf_core.cli import main
from rlhf_core.environment import end_with_starter

if __name__ == "__main__":
    end_with_starter()
    main()

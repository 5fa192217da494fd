"""`python -m rlprune`, which is how torchrun starts it."""

from rlprune.cli import entry

if __name__ == "__main__":
    entry()

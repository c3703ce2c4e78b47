"""`python -m velollm` is the `velollm` command."""

from velollm.cli import main

if __name__ == "__main__":
    main()

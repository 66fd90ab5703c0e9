"""`python -m unmask` is the `unmask` command."""

from .cli import main

if __name__ == "__main__":
    main()

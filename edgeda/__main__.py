"""`python -m edgeda`."""

from edgeda.cli import main

if __name__ == "__main__":
    main()

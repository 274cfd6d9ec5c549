"""``python -m fastar`` is the ``fastar`` command."""

from fastar.cli import main

if __name__ == "__main__":
    main()

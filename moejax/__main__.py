"""``python -m moejax`` is the ``moejax`` command."""

from moejax.cli import main

if __name__ == "__main__":
    main()

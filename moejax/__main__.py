"""``python -m moejax`` is the ``moejax`` command."""

from moejax.commands.main import main

if __name__ == "__main__":
    main()

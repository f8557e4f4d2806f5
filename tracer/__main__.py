"""``python -m fxplain``: the command line."""

from fxplain.cli.commands import main

if __name__ == "__main__":
    main()

"""``python -m mifuse_cli`` is the ``mifuse`` command."""

from mifuse_cli.cli import main

if __name__ == "__main__":
    main()

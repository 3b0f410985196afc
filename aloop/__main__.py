"""What ``python -m aloop`` does: the commands are in `aloop.cli`."""

import sys

from aloop.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())

"""The example of the digits, to be broken."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from digits import make_loop

from aloop import MainLoop


def digits(directory: Path) -> MainLoop:
    """Make the loop of the example, for one epoch."""
    return make_loop(directory, epochs=1, resume=True)

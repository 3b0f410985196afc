"""The code of the page about hosts, which the tests run as it stands there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "inside-your-program.md"


def code(heading: str, number: int = 0) -> str:
    """Give the Python code block of this number under a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    blocks = re.findall(r"^```python\n(.*?)^```$", sections[heading], re.MULTILINE | re.DOTALL)
    return blocks[number]

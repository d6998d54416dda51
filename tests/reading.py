"""What a finding says, read back from its one short line."""

from __future__ import annotations

import re


def numbers(text: str) -> list[float]:
    """Every number in a line, in its order: shares stay in per cent."""
    return [float(number.replace(",", "")) for number in re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]\d+)?", text)]

"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned"]


def aligned(lines: Sequence[Sequence[str]], *, left: int = 0) -> str:
    """Lines of words with the columns below each other.

    Args:
        lines: As many words in each.
        left: How many of the first columns are set flush left; the others are flush right.
    """
    columns = []
    for i, column in enumerate(zip(*lines)):
        width = max(map(len, column))
        columns.append([word.ljust(width) if i < left else word.rjust(width) for word in column])
    return "\n".join("  ".join(words).rstrip() for words in zip(*columns))

"""Hints for misspelt names."""

import difflib
from collections.abc import Collection


def nearest(name: str, names: Collection[str]) -> str:
    """Say which of ``names`` come nearest to a misspelt one, as the end of an error message.

    Example:
        >>> nearest("replai", ["replay", "ewc"])
        "Did you mean 'replay'?"
    """
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Available: {', '.join(sorted(names))}."

"""Hints for misspelt names."""

import difflib
from collections.abc import Collection


def nearest(name: str, names: Collection[str]) -> str:
    """Say which of ``names`` come nearest to a misspelt one, as the end of an error message.

    Example:
        >>> nearest("replai", ["replay", "ewc"])
        "Did you mean 'replay'?"
    """
    spelled = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(spelled[other]) for other in close)}?"
    some = sorted(names)[:20]
    return f"Available: {', '.join(some)}{f' and {len(names) - len(some)} more' if len(names) > len(some) else ''}."

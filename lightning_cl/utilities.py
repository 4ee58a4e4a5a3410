"""Small things that every part of the core needs: seeds, modes, random states."""

import os
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def derive_seed(*numbers: int) -> int:
    """Mix non-negative integers into one seed, so that (1, 2) and (2, 1) are unrelated.

    Zeros at the end do not count: (1,) and (1, 0) give the same.

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def default_seed(seed: int | None) -> int:
    """Return ``seed``, or the one that ``lightning.seed_everything`` was last called with, or 0.

    Raises:
        ValueError: If it is negative.

    Example:
        >>> default_seed(7)
        7
    """
    chosen = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
    if chosen < 0:
        raise ValueError(f"`seed` must be 0 or more, got {chosen}.")
    return chosen


def permutation(count: int, seed: int) -> Tensor:
    """A permutation of ``range(count)`` that depends on ``seed`` only."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in eval mode for a block; afterwards each submodule has its own mode back.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(net):
        ...     net[0].training
        False
        >>> [child.training for child in net]
        [True, False]
    """
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type in which statistics are computed and kept: float32 for what is narrower.

    Example:
        >>> at_least_float32(torch.bfloat16), at_least_float32(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def select_parameters(module: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the trainable parameters whose name matches one of the patterns, by name.

    Args:
        module: The module.
        patterns: Regular expressions that are looked for anywhere in the dotted names; ``None`` selects all.

    Raises:
        ValueError: If a pattern is no regular expression, or matches no trainable parameter.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> list(select_parameters(net, ["^1", "0.bias"]))
        ['0.bias', '1.weight', '1.bias']
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if patterns is None:
        return named
    if isinstance(patterns, str):
        raise ValueError(f"`parameters` must be a list of regular expressions, got one: write [{patterns!r}].")
    selected = set()
    for pattern in patterns:
        try:
            found = [name for name in named if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"`parameters` must hold regular expressions, got {pattern!r}: {error}.") from error
        if not found:
            few = ", ".join(list(named)[:5]) + (", ..." if len(named) > 5 else "")
            raise ValueError(f"`parameters`: {pattern!r} matches no trainable parameter; there are {few}.")
        selected.update(found)
    return {name: p for name, p in named.items() if name in selected}


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """Return the state of the global generators, in types that ``torch.load(weights_only=True)`` reads."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`get_rng_state` returned.

    Example:
        >>> state = get_rng_state()
        >>> first = torch.rand(1), np.random.rand(), random.random()
        >>> set_rng_state(state)
        >>> first == (torch.rand(1), np.random.rand(), random.random())
        True
    """
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Leave the global generators as they were before the block."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)

"""Public names that are imported when they are first used: ``import lightning_cl`` itself costs nothing."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the module functions ``__getattr__`` and ``__dir__`` (PEP 562) of a package.

    Args:
        package: The package's ``__name__``.
        names: Public name to the submodule that defines it, relative to the package.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:  # noqa: N807
        return sorted(names)

    return __getattr__, __dir__

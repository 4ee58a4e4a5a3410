"""What a module computes on the way: values at chosen places of a forward, without a second one."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

OUTPUT = ""
"""The place (see :func:`values_at`) of what the module itself returns."""


def values_at(module: nn.Module, places: Iterable[str], forward: Callable[[], Any]) -> dict[str, Any]:
    """Run a forward of ``module`` and return what was computed at some places, and under ``""`` what it returned.

    Args:
        module: The module.
        places: ``"net.3"`` is what this submodule returns, ``"net.3:input"`` its first argument. Of a submodule that is
            called several times it is the last.
        forward: Calls ``module``. What is compiled is run as it was before, since compiled code may not see hooks.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Identity())
        >>> values = values_at(net, ["1:input"], lambda: net(torch.zeros(2, 3, 4)))
        >>> values["1:input"].shape, values[""].shape
        (torch.Size([2, 12]), torch.Size([2, 12]))
    """
    values: dict[str, Any] = {}
    with ExitStack() as stack:
        for place in places:
            stack.callback(_hook(module, place, values.__setitem__).remove)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        values[OUTPUT] = forward()
    return values


def find_scores(output: Any) -> Tensor | None:
    """Return the scores ``(B, C)`` in what a module returned, a tensor or a dict with the key ``"logits"``, if any."""
    scores = output.get("logits") if isinstance(output, Mapping) else output
    return scores if isinstance(scores, Tensor) and scores.ndim == 2 else None


def scores_in(output: Any) -> Tensor:
    """Return the scores ``(B, C)`` in what a module returned: a tensor, or a dict with the key ``"logits"``.

    Raises:
        TypeError: If it is something else.
    """
    if (scores := find_scores(output)) is not None:
        return scores
    found = output.get("logits", output) if isinstance(output, Mapping) else output
    form = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise TypeError(
        f"A module must return scores (B, C), or a dict with them under 'logits', got {form}: let `forward` return one "
        "of these."
    )


def _hook(module: nn.Module, place: str, keep: Callable[[str, Any], None]) -> RemovableHandle:
    """Hand what is computed at a place to ``keep``."""
    name, _, argument = place.partition(":")

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        keep(place, next(iter((*args, *kwargs.values()))) if argument else output)

    return module.get_submodule(name).register_forward_hook(hook, with_kwargs=True)


def _part(value: Any, sizes: list[int], number: int) -> Any:
    """Of all tensors in ``value`` that have the rows of several parts, those of one."""
    if isinstance(value, Tensor):
        whole = value.ndim and len(value) == sum(sizes)
        return value[sum(sizes[:number]) : sum(sizes[: number + 1])] if whole else value
    if isinstance(value, Mapping):
        return {key: _part(item, sizes, number) for key, item in value.items()}
    return type(value)(_part(item, sizes, number) for item in value) if type(value) in (list, tuple) else value


class Forward:
    """A forward of the module under training: its arguments, and by ``[place]`` what was computed there."""

    def __init__(self, owner: "Forwards", args: Any, kwargs: dict[str, Any], values: dict[str, list[Any]]) -> None:
        self.args = args
        self.kwargs = kwargs
        self._owner = owner
        self._values = {place: found[-1] for place, found in values.items()}

    def got(self, x: Any) -> bool:
        """Whether ``x`` itself was an argument."""
        return any(value is x for value in (*self.args, *self.kwargs.values()))

    def __getitem__(self, place: str) -> Any:
        if place not in self._values:
            self._values |= self._owner.again(self.args, self.kwargs)
        if place not in self._values:
            raise ValueError(
                f"{place.partition(':')[0]!r} was not called in the forward of {type(self._owner.module).__name__}: "
                "name a submodule that is."
            )
        return self._values[place]


class Forwards:
    """Listens to a module while ``training_step`` runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._handles: list[RemovableHandle] = []
        self._places: list[str] = []
        self._listens = False  # under DDP the module is also called from outside, with `training_step` as its forward
        self._calls: list[tuple[Any, Any, dict[str, list[Any]]]] = []
        self._open: dict[str, list[Any]] = {}  # found since the last call of the module itself
        self._chosen: tuple[Any, Forward] | None = None
        self._joining: list[Tensor] = []
        self._adjusting: list[Callable[[Tensor], Tensor]] = []
        self._own: tuple[Any, dict[str, Any]] = (), {}  # the arguments that were joined
        self._sizes: list[int] = []  # of the inputs of the module and of what joined them
        self._joined: list[Any] = []

    def watch(self, place: str) -> None:
        """Keep what is computed at a place."""
        if not self._handles:
            self._handles.append(self.module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(self.module.register_forward_hook(self._close, with_kwargs=True))
        if place not in (OUTPUT, *self._places):
            self._places.append(place)
            self._handles.append(_hook(self.module, place, self._keep))

    def _keep(self, place: str, value: Any) -> None:
        if self._listens and torch.is_grad_enabled():
            self._open.setdefault(place, []).append(value)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not (self._listens and torch.is_grad_enabled()) or self._sizes or not self._joining:
            return None
        first = next(iter((*args, *kwargs.values())), None)
        if not isinstance(first, Tensor):
            raise TypeError(
                f"`forward='joint'` needs a `training_step` that calls the module with the inputs, got a "
                f"{type(first).__name__}: set `forward='separate'`."
            )
        self._own = args, kwargs
        self._sizes = [len(first), *map(len, self._joining)]
        x = torch.cat([first, *self._joining])
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): x})

    def _close(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not (self._listens and torch.is_grad_enabled()):
            return None
        # Compiled code is kept although hooks come to inner modules, but not although these names change.
        found = {place: self._open[place] for place in self._places if place in self._open}
        changed = bool(self._adjusting)
        if self._sizes and not self._joined:
            output, *self._joined = (_part(output, self._sizes, k) for k in range(len(self._sizes)))
            found = _part(found, self._sizes, 0)
            args, kwargs = self._own
            changed = True
        self._calls.append((args, kwargs, {**found, OUTPUT: [output]}))
        self._open = {}
        for adjust in self._adjusting:
            scores = adjust(scores_in(output))
            output = {**output, "logits": scores} if isinstance(output, Mapping) else scores
        return output if changed else None

    def join(self, x: Tensor) -> int:
        """Let the next step's forward be one of its inputs and of ``x``, which it does not see.

        Returns:
            The number under which :meth:`joined` has what came out.
        """
        self._joining.append(x)
        return len(self._joining) - 1

    def joined(self, number: int) -> Any:
        """What the module returned for the rows that joined.

        Raises:
            ValueError: If the module was not called.
        """
        if not self._joined:
            raise ValueError(
                "`forward='joint'` needs a `training_step` that calls the module itself, `self(x)`, and not parts of "
                "it: set `forward='separate'`."
            )
        return self._joined[number]

    def adjust(self, change: Callable[[Tensor], Tensor]) -> None:
        """Let the next step get other scores than the module returns, and listeners those that it returned."""
        self._adjusting.append(change)

    @property
    def own_rows(self) -> int | None:
        """While a step has the module called: how many rows are its own, or 0 if all are; else ``None``."""
        if not (self._listens and torch.is_grad_enabled()):
            return None
        return self._sizes[0] if self._sizes and not self._joined else 0

    def during(self, step: Callable[[], Any]) -> Any:
        """Listen to a step."""
        self._calls, self._open, self._chosen = [], {}, None
        self._listens = True
        try:
            return step()
        finally:
            self._listens = False

    def of(self, x: Any) -> Forward:
        """The forward of the inputs ``x``."""
        if self._chosen is None or self._chosen[0] is not x:
            self._chosen = (x, self._choose(x))
        return self._chosen[1]

    def _choose(self, x: Any) -> Forward:
        calls = [Forward(self, *call) for call in self._calls]
        if len(calls) > 1:
            calls = [call for call in calls if call.got(x)]
        if calls:
            return calls[-1]
        alone = not self._calls and all(len(found) == 1 for found in self._open.values())
        return Forward(self, (x,), {}, self._open if alone else {})

    def again(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """One more forward."""
        return values_at(self.module, self._places, lambda: self.module(*args, **kwargs))

    def forget(self) -> None:
        """Let go of what was kept, and of what was said of the next step."""
        self._calls, self._open, self._chosen = [], {}, None
        self._joining, self._adjusting, self._sizes, self._joined = [], [], [], []
        self._own = (), {}

    def release(self) -> None:
        """Take the hooks away."""
        self.forget()
        while self._handles:
            self._handles.pop().remove()

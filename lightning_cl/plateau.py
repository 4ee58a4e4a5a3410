"""Plateaus of a loss: when a stream that tells no boundaries has been learned for now."""

from collections.abc import Mapping
from typing import Any


class PlateauDetector:
    r"""Tells from a stream of losses when it is low and flat, once after each rise.

    Let :math:`m` and :math:`v` be mean and variance (divided by the number of values) of the last ``window`` losses,
    and :math:`m_0` and :math:`v_0` those of the last plateau. There is a *rise* when :math:`m > m_0 + \sqrt{v_0}`, and
    a *plateau* when :math:`m <` ``max_mean``, :math:`v <` ``max_variance`` and there was a rise since the last plateau;
    the first plateau needs none.

    This is the rule of Aljundi, Kelchtermans & Tuytelaars, "Task-Free Continual Learning", CVPR 2019, as in the
    authors' code, whose defaults these are. There the loss is a sum over the batch: set the thresholds to what your
    loss falls to. That code also judges a window that is not full yet; here it must be.

    Args:
        window: Number of losses that are looked at, 2 or more.
        max_mean: The mean below which the loss is low, above 0.
        max_variance: The variance below which it is flat, above 0.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> detector = PlateauDetector(window=2)
        >>> [detector.push(loss) for loss in (0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1)]
        [False, False, True, False, False, False, True]
    """

    def __init__(self, window: int = 5, max_mean: float = 0.2, max_variance: float = 0.1) -> None:
        if window < 2:
            raise ValueError(f"`window` must be 2 or more, got {window}.")
        for name, value in {"max_mean": max_mean, "max_variance": max_variance}.items():
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        self.window = window
        self.max_mean = max_mean
        self.max_variance = max_variance
        self.losses: list[float] = []
        self.risen = True
        self.last_mean = 0.0  # of the last plateau; not read before there is one
        self.last_variance = 0.0

    def push(self, loss: float) -> bool:
        """Take in the next loss; tell whether this is a plateau."""
        self.losses = [*self.losses, loss][-self.window :]
        if len(self.losses) < self.window:
            return False
        mean = sum(self.losses) / self.window
        variance = sum((value - mean) ** 2 for value in self.losses) / self.window
        self.risen = self.risen or mean > self.last_mean + self.last_variance**0.5
        if not (self.risen and mean < self.max_mean and variance < self.max_variance):
            return False
        self.risen, self.last_mean, self.last_variance = False, mean, variance
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state in numbers and lists of them."""
        return {
            "losses": list(self.losses),
            "risen": self.risen,
            "last_mean": self.last_mean,
            "last_variance": self.last_variance,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over."""
        self.losses, self.risen = list(state_dict["losses"]), state_dict["risen"]
        self.last_mean, self.last_variance = state_dict["last_mean"], state_dict["last_variance"]

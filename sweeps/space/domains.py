"""Domains: the sets of values from which the search chooses a field of a space file.

Each domain is written as a mapping with one key: `{choice: [...]}`, `{int: [2, 4]}`, `{int: [2, 8, 2]}` (step),
`{log_int: [8, 512]}`, `{uniform: [0.1, 0.9]}`, `{uniform: [0.1, 0.9, 0.1]}` (step), `{log_uniform: [1e-5, 1e-2]}`.
Both ends belong to a range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lowrank.errors import InputError, show_value

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str | None
DOMAIN_KEYS = ("choice", "int", "log_int", "uniform", "log_uniform")
SEVERAL = "{choice: [...]}"  # how a field of one value is given several, for messages
MAX_CHOICES = 1000  # of one choice
MAX_INTEGER = 2**53  # up to it a float holds every whole number
MIN_STEP = 1e-9  # values are rounded to 12 decimals


@dataclass(frozen=True)
class Choice:
    """One of the listed values."""

    values: tuple[Value, ...]

    def corners(self) -> tuple[Value, ...]:
        """Return the values to check: if these are valid, all are. Of a choice they are all values."""
        return self.values

    def count(self) -> int | None:
        """Count the values; None for a continuous range."""
        return len(self.values)

    def grid(self) -> tuple[Value, ...] | None:
        """Return all values in order, or None for a continuous range."""
        return self.values

    def sample(self, limit: int) -> tuple[Value, ...]:
        """Return all values, or `limit` that are spread evenly over them where there are more."""
        return _spread(len(self.values), limit, self.values.__getitem__)

    def between(self, low: float, high: float) -> Choice:
        """Cut numbers to those from `low` to `high`, both included."""
        return Choice(tuple(v for v in self.values if isinstance(v, int | float) and low <= v <= high))

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Let Optuna choose a value of the field `name`."""
        return trial.suggest_categorical(name, self.values)

    def contains(self, value: object) -> bool:
        """Tell whether `value` is one of the values; an integer equals a float of the same number."""
        return any(type(value) is type(choice) and value == choice for choice in self.values) or (
            not isinstance(value, bool) and isinstance(value, int | float) and value in self.values
        )

    def value_at(self, coordinate: float) -> Value:
        """Return the value at a coordinate in [0, 1), of which each value covers an equal part."""
        return self.values[int(coordinate * len(self.values))]

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the domain as an Optuna distribution."""
        import optuna  # here, since it takes a second and reading a space does not need it

        return optuna.distributions.CategoricalDistribution(self.values)


@dataclass(frozen=True)
class Range:
    """Integers or floats from `low` to `high`, both included.

    Attributes:
        low: the smallest value.
        high: the largest value that may be reached.
        step: distance of neighbouring values; None for a range without a grid: continuous, or logarithmic integers.
        log: whether to sample uniformly in the logarithm.
        integer: whether values are integers.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    integer: bool = False

    def corners(self) -> tuple[Value, ...]:
        """Return the values to check: both ends."""
        return self._cast(self.low), self._cast(self.high)

    def count(self) -> int | None:
        """Count the values; None for a range without a step."""
        return None if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def grid(self) -> tuple[Value, ...] | None:
        """Return all values in order, or None for a range without a step. There may be very many: see `count`."""
        count = self.count()
        return None if count is None else tuple(map(self._step_value, range(count)))

    def sample(self, limit: int) -> tuple[Value, ...]:
        """Return all values, or `limit` that are spread evenly over them; without a step both ends."""
        count = self.count()
        return self.corners() if count is None else _spread(count, limit, self._step_value)

    def between(self, low: float, high: float) -> Range:
        """Cut the range to the part from `low` to `high`, which are values of it; its step and scale stay."""
        return replace(self, low=low, high=high)

    def values_between(self, above: float, high: float) -> tuple[float, float] | None:
        """Find the ends of the part above `above` and up to `high`.

        Returns:
            Its smallest and its largest value, None where it has no value. Of a continuous range the smallest is
            `above` itself.
        """
        if self.step is None and not self.integer:
            return above, high
        step = self.step or 1.0
        lowest = max(0, math.floor((above - self.low) / step + 1e-9) + 1)
        highest = math.floor((high - self.low) / step + 1e-9)
        if lowest > highest:
            return None
        return round(self.low + lowest * step, 12), round(self.low + highest * step, 12)

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Let Optuna choose a value of the field `name`."""
        if self.integer:
            step = int(self.step or 1)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: object) -> bool:
        """Tell whether `value` is a number in the range and, if there is a step, on the grid."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.integer and value != int(value):
            return False
        return self.step is None or abs(round((value - self.low) / self.step) * self.step + self.low - value) < 1e-9

    def value_at(self, coordinate: float) -> Value:
        """Return the value at a coordinate in [0, 1); equal parts of it are equal steps, or equal ratios with `log`."""
        count = self.count()
        if count is not None:
            return self._step_value(int(coordinate * count))
        if self.log and self.integer:
            # Every integer, the ends included, gets all numbers that round to it
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return int(min(self.high, max(self.low, round(math.exp(low + coordinate * (high - low))))))
        if self.log:
            return self._cast(math.exp(math.log(self.low) + coordinate * (math.log(self.high) - math.log(self.low))))
        return self._cast(self.low + coordinate * (self.high - self.low))

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the domain as an Optuna distribution."""
        import optuna

        if self.integer:
            step = int(self.step or 1)
            return optuna.distributions.IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def _step_value(self, index: int) -> float:
        return self._cast(round(self.low + index * (self.step or 0.0), 12))

    def _cast(self, value: float) -> float:
        return int(value) if self.integer else float(value)


Domain = Choice | Range


def _spread(count: int, limit: int, value_at: Callable[[int], Value]) -> tuple[Value, ...]:
    """Values at up to `limit` indexes below `count`, the first and the last among them."""
    if count <= limit:
        return tuple(map(value_at, range(count)))
    return tuple(value_at(index * (count - 1) // (limit - 1)) for index in range(limit))


def is_domain(value: object) -> bool:
    """Tell whether a value of a space file is a domain rather than a literal.

    Args:
        value: as YAML gives it.

    Returns:
        Whether it is a mapping whose one key is among `DOMAIN_KEYS`.
    """
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in DOMAIN_KEYS


def parse_domain(path: str, value: Mapping[str, Any]) -> Domain:
    """Parse a domain as a space file writes it.

    Args:
        path: the dotted name of the field, for messages.
        value: a mapping with one key of `DOMAIN_KEYS`.

    Returns:
        The domain.

    Raises:
        InputError: the key's value is not a list of the form that the key requires, see the head of this module.
    """
    key, values = next(iter(value.items()))
    if not isinstance(values, list) or not values:
        raise InputError(f"`{path}`: `{key}` must be a list that is not empty, but got {show_value(values)}")
    if key == "choice":
        return _parse_choice(path, values)
    return _parse_range(path, key, values)


def _parse_choice(path: str, values: list[Any]) -> Choice:
    if len(values) > MAX_CHOICES:
        raise InputError(f"`{path}`: `choice` must list at most {MAX_CHOICES} values, but got {len(values):,}")
    # Optuna knows a value by equality, by which 1, 1.0 and true are one value
    if any(isinstance(value, list | dict) for value in values) or len(set(values)) != len(values):
        raise InputError(
            f"`{path}`: `choice` must list distinct numbers, texts, true, false or null, but got {show_value(values)}"
        )
    return Choice(tuple(values))


def _parse_range(path: str, key: str, values: list[Any]) -> Range:
    integer, log = key in ("int", "log_int"), key.startswith("log_")
    max_length = 2 if log else 3
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(values) or not 2 <= len(values) <= max_length or not all(map(math.isfinite, numbers)):
        form = "[low, high]" if log else "[low, high] or [low, high, step]"
        raise InputError(f"`{path}`: `{key}` must be {form} of numbers, but got {show_value(values)}")
    if integer and any(number != int(number) for number in numbers):
        raise InputError(f"`{path}`: `{key}` must be whole numbers, but got {show_value(values)}")
    if integer and max(map(abs, numbers)) > MAX_INTEGER:
        raise InputError(f"`{path}`: `{key}` must be at most 2**53 in size, but got {show_value(values)}")
    low, high, *step = numbers
    if low > high or (log and low <= 0) or (step and step[0] <= 0):
        raise InputError(
            f"`{path}`: `{key}` must have low <= high{' and low above 0' if log else ' and a step above 0'}, "
            f"but got {show_value(values)}"
        )
    if step and step[0] < MIN_STEP:
        raise InputError(f"`{path}`: `{key}` must have a step of at least {MIN_STEP:g}, but got {step[0]:g}")
    default_step = 1.0 if integer and not log else None
    return Range(float(low), float(high), float(step[0]) if step else default_step, log, integer)

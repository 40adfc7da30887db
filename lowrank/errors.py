"""The project's own errors: each says in one line the rule, the value received and the choices."""

from __future__ import annotations

from collections.abc import Iterable


class LowrankError(Exception):
    """Base of the project's own errors."""


class InputError(LowrankError, ValueError):
    """The user asked for something that cannot be; command lines end with its text and exit code 2."""


class InfeasibleError(InputError):
    """No setting meets the constraint; the text names the nearest that does."""


class UncountableError(LowrankError):
    """A layer whose parameters or mult-adds have no rule; never counted as zero."""


class LoaderHungError(LowrankError):
    """No images come from where they are stored; the process that waited is of no more use."""


def unknown(what: str, value: object, choices: Iterable[object]) -> InputError:
    """An InputError that says which `what` exist, e.g. unknown("method", "tt", METHODS)."""
    listed = ", ".join(sorted(str(choice) for choice in choices))
    return InputError(f"unknown {what} {str(value)!r}; choose from: {listed}")

"""The project's own errors. A message is one line: the rule, the value received, the choices."""

from __future__ import annotations

from collections.abc import Iterable


class LowrankError(Exception):
    """Base of the project's own errors."""


class InputError(LowrankError, ValueError):
    """The user's input is invalid.

    Command lines print the message and exit with code 2.
    """


class InfeasibleError(InputError):
    """No setting meets the constraint; the message names the nearest that does."""


class UncountableError(LowrankError):
    """A layer whose parameters or mult-adds have no rule; it is never counted as zero."""


class LoaderHungError(LowrankError):
    """No images come from a data loader.

    Reads of the storage may block this process for ever, so it should be replaced.
    """


def unknown(what: str, value: object, choices: Iterable[object]) -> InputError:
    """Make an InputError that lists the choices and suggests the nearest one.

    Args:
        what: the kind of thing, e.g. `method`.
        value: the value received.
        choices: what there is.

    Returns:
        The error, e.g. `unknown method 'tuker'; choose from: cp, tucker; did you mean tucker?`.
    """
    names = sorted(str(choice) for choice in choices)
    message = f"unknown {what} {str(value)!r}; choose from: {', '.join(names)}"
    return InputError(message + did_you_mean(str(value), names))


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Suggest the choice that a mistyped value is nearest to.

    Args:
        value: what was typed.
        choices: what could have been meant.

    Returns:
        E.g. `; did you mean tt_dims?`, to be appended to a message; empty where nothing is near.
    """
    import difflib  # only an error needs it

    nearest = difflib.get_close_matches(value, list(choices), 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""

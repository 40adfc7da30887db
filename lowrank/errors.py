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
    """A method cannot replace a layer, or no setting meets a budget.

    The message names the nearest possible setting where it is known.
    """


class UncountableError(LowrankError):
    """There is no rule for counting a layer's parameters or mult-adds, and counting it as zero would be wrong."""


class LoaderHungError(LowrankError):
    """A data loader has delivered no batch for too long.

    Reads from its storage may block this process forever, so the trial should go on in a new process.
    """


def unknown(what: str, value: object, choices: Iterable[object]) -> InputError:
    """Make an InputError that lists the choices and suggests the nearest one.

    Args:
        what: what `value` should name, e.g. `method`.
        value: the value received.
        choices: the valid names.

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
        choices: the valid names.

    Returns:
        E.g. `; did you mean tt_dims?`, to be appended to a message; empty where no choice is similar.
    """
    import difflib  # here, since its import would slow down every command and only an error needs it

    nearest = difflib.get_close_matches(value, list(choices), 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""

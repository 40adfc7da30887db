"""The project's own errors. A message is one line: the rule, the value received, the choices."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

VALUE_CHARACTERS = 80  # of a value in a message
CHOICES_CHARACTERS = 170  # of a list of choices


class LowrankError(Exception):
    """Base of the project's own errors."""


class InputError(LowrankError, ValueError):
    """The user's input is invalid.

    Command lines print the message and exit with code 2.
    """


class InfeasibleError(InputError):
    """A method cannot replace a layer, or no setting meets a budget.

    The message names the nearest possible setting where it is known.

    Attributes:
        smallest: parameters of the smallest setting; None where it is not known.
    """

    def __init__(self, message: str, smallest: int | None = None) -> None:
        """Make the error.

        Args:
            message: one line for the user.
            smallest: as in the attributes.
        """
        super().__init__(message)
        self.smallest = smallest


class UncountableError(LowrankError):
    """There is no rule for counting a layer's parameters or mult-adds, and counting it as zero would be wrong."""


class HungError(LowrankError):
    """Something that was waited for made no progress for too long; the message says what and how long."""


class LoaderHungError(HungError):
    """Nothing of a data set could be read for too long.

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
    names, text = sorted(str(choice) for choice in choices), str(value)
    message = f"unknown {what} {show_value(value)}; choose from: {show_choices(names, text)}"
    return InputError(message + did_you_mean(text, names))


def show_value(value: object) -> str:
    """Write a value for a message, whoever gave it.

    Args:
        value: any value, of any size.

    Returns:
        Its `repr` on one line, of which at most VALUE_CHARACTERS are left where it is longer.
    """
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxlist, shortener.maxtuple, shortener.maxdict = 3, 12, 12, 8
    shortener.maxstring = shortener.maxother = shortener.maxlong = VALUE_CHARACTERS
    text = shortener.repr(value) if isinstance(value, str | int | list | tuple | dict) else repr(value)
    return shorten(" ".join(text.splitlines()), VALUE_CHARACTERS)


def show_choices(choices: Iterable[str], value: str = "") -> str:
    """Write a list of choices for a message.

    Args:
        choices: the valid names.
        value: what was received; of a long list the names that are like it come first.

    Returns:
        All names; of a list of more than CHOICES_CHARACTERS so many as that, and how many there are.
    """
    names = list(choices)
    if len(", ".join(names)) <= CHOICES_CHARACTERS:
        return ", ".join(names)
    from difflib import get_close_matches  # here, as in did_you_mean

    count = len(names)
    names = list(dict.fromkeys((*get_close_matches(value[:VALUE_CHARACTERS], names, 5, 0.4), *names)))
    while len(", ".join(names)) > CHOICES_CHARACTERS:
        names.pop()
    return f"{', '.join(names)}, ... ({count} in all)"


def shorten(text: str, limit: int) -> str:
    """Leave out the middle of a text that is too long.

    Args:
        text: the text.
        limit: the most characters to return.

    Returns:
        The text, or its beginning and its end with `...` between them.
    """
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 3]}...{text[-tail:]}"


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Suggest the choice that a mistyped value is nearest to.

    Args:
        value: what was typed.
        choices: the valid names.

    Returns:
        E.g. `; did you mean tt_dims?`, to be appended to a message; empty where no choice is similar.
    """
    import difflib  # here, since its import would slow down every command and only an error needs it

    nearest = difflib.get_close_matches(value[:VALUE_CHARACTERS], list(choices), 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""

"""How every command line of the project ends: one line on standard error, and an exit code that says what it was."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from lowrank.errors import InputError, UncountableError

DONE, FAILED, BAD_INPUT, DISK_FULL = 0, 1, 2, 3
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # the disk's fault, not the program's
INTERRUPTED = 130  # what a shell sees of a program that Ctrl-C has ended
AGAIN = "interrupted; the same command begins again"


def exit_code(run: Callable[[], int], interrupted: str = AGAIN) -> int:
    """Run a command; returns its exit code, 2 for bad input, 130 for Ctrl-C, 1 for a disk that takes no more; each with
    one line.

    Args:
        run: the command.
        interrupted: what to do after a Ctrl-C, for the user.
    """
    try:
        return run()
    except (InputError, UncountableError) as error:
        return ended(BAD_INPUT, f"error: {error}")
    except KeyboardInterrupt:
        return ended(INTERRUPTED, interrupted)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        return ended(FAILED, f"error: {error}")


def ended(code: int, line: str) -> int:
    """Say `line`, its line breaks taken out, on standard error; returns `code`."""
    print(" ".join(line.splitlines()), file=sys.stderr)
    return code

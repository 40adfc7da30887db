"""Whether Python finds the modules of a library compiled, or compiles them again in every process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def missing_bytecode(library: ModuleType) -> str | None:
    """Say that starts take longer where Python keeps no compiled modules.

    Torch alone has thousands of modules: the driver and each worker then spend seconds on them.

    Args:
        library: has been imported, so that Python has written its compiled module where it can.

    Returns:
        One line with the cause and what helps; None where the compiled module is there.
    """
    cached = None if library.__spec__ is None else library.__spec__.cached
    if cached is None or Path(cached).is_file():
        return None
    folder = Path(cached).parent
    cause = f"{folder} cannot be written; set PYTHONPYCACHEPREFIX to a folder that can"
    if sys.dont_write_bytecode:
        cause = f"PYTHONDONTWRITEBYTECODE is set; unset it, and set PYTHONPYCACHEPREFIX if {folder} cannot be written"
    return f"each process spends seconds on compiling the modules of {library.__name__} and other libraries: {cause}"

"""What a space file may not do unasked: name code to run, or read outside the data folder.

A space may come from anybody. `--allow-code` allows the first; the second is asked for by naming the data set on the
command line (`--data`, `--set data...`) or the folder that holds it (`--data-dir`).
"""

from __future__ import annotations

from pathlib import Path

from lowrank.errors import InputError
from sweeps.space.model import Space
from sweeps.space.run_options import RunOptions

DATA_FOLDER = Path("data")
KNOWN_PREFIXES = ("torchvision",)  # of network names that carry a colon and are no code of the user's


def check_trust(space: Space, *, allow_code: bool, data_dir: Path | None = None, data_asked: bool = False) -> None:
    """Raises InputError when the space does what it may not; imports and opens nothing."""
    for name in _networks(space):
        if _is_code(name) and not allow_code:
            raise InputError(
                f"the space names code to run, the network {name!r}; --allow-code allows it, if you trust who wrote it"
            )
    if not data_asked:
        _check_data(space.data.name, (data_dir or DATA_FOLDER).resolve())


def _networks(space: Space) -> list[str]:
    domain = space.domains.get("network.name")
    teacher = [space.teacher.network] if space.teacher and space.teacher.network else []
    return [space.network.name, *(str(value) for value in (domain.corners() if domain else ())), *teacher]


def _is_code(name: str) -> bool:
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix not in KNOWN_PREFIXES


def _check_data(name: str, allowed: Path) -> None:
    kind, colon, folder = name.partition(":")
    if colon and not Path(folder).resolve().is_relative_to(allowed):
        raise InputError(
            f"the space reads {folder}, which is outside the data folder {allowed}; if you want that, name the data "
            f"yourself: --data {kind}:{folder}"
        )


def check_options(space: Space, options: RunOptions) -> None:
    """`check_trust` by what the command line says; raises InputError."""
    asked = bool(options.data) or any(override.startswith("data") for override in options.set)
    check_trust(space, allow_code=options.allow_code, data_dir=options.data_dir, data_asked=asked)

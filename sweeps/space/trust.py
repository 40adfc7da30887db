"""What a space file or a record may not do by itself: name code to run, or read outside the data folder.

Both may come from anybody. `--allow-code` allows the first; so does a name of a space that the user typed (`--network`,
`--set network.name=...`), and a space that this checkout carries. The second is allowed where the command line names
the data set (`--data`, `--set data...`) or the folder that holds it (`--data-dir`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lowrank.errors import InputError
from lowrank.networks import absolute_name, check_own_code, is_own_code
from sweeps.space.files import SPACES_FOLDER, find_space
from sweeps.space.model import Space
from sweeps.space.run_options import RunOptions

DATA_FOLDER = Path("data")


def check_trust(
    space: Space, *, allow_code: bool, data_dir: Path | None = None, data_named: bool = False,
    typed_names: Collection[str] = (),
) -> None:  # fmt: skip
    """Check what a space would run and read, before anything is imported or opened.

    Args:
        space: the space, which may come from anybody.
        allow_code: whether it may name a network in the user's own code.
        data_dir: the folder from which it may read; None for the default.
        data_named: whether the user named the data set on the command line.
        typed_names: networks that the user named on the command line.

    Raises:
        InputError: the space names code, or a folder of images outside the data folder, and may not.
    """
    check_own_code(own_networks(space), allow_code or typed_names, source="the space")
    if not data_named:
        _check_data(space.data.name, (data_dir or DATA_FOLDER).resolve())


def own_networks(space: Space) -> list[str]:
    """List the networks of a space, and of its teacher, that are code of the user's.

    Args:
        space: the space.

    Returns:
        Their names.
    """
    domain = space.domains.get("network.name")
    teacher = [space.teacher.network] if space.teacher and space.teacher.network else []
    names = [space.network.name, *(str(value) for value in (domain.corners() if domain else ())), *teacher]
    return [name for name in dict.fromkeys(names) if is_own_code(name)]


def _check_data(name: str, allowed: Path) -> None:
    prefix, colon, folder = name.partition(":")
    if colon and not Path(folder).resolve().is_relative_to(allowed):
        raise InputError(
            f"the space reads {folder}, which is outside the data folder {allowed}; if you want that, name the data "
            f"yourself: --data {prefix}:{folder}"
        )


def check_options(space: Space, options: RunOptions) -> None:
    """Check a space as `check_trust` does, with the permissions of the command line.

    Args:
        space: the space.
        options: of the command line.

    Raises:
        InputError: as `check_trust`.
    """
    data_named = bool(options.data) or any(override.startswith("data") for override in options.set)
    allow_code = options.allow_code or _is_of_checkout(options.space)
    # Of a series that is resumed, the options come from its folder
    typed_names = () if options.resume else names_typed(options.network, options.set)
    check_trust(space, allow_code=allow_code, data_dir=options.data_dir, data_named=data_named, typed_names=typed_names)


def names_typed(network: str | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """List the networks that a command line names.

    That is permission to run their code.

    Args:
        network: the value of `--network`.
        overrides: the texts after `--set`, each `a.b=value`.

    Returns:
        The names as a space has them, with absolute paths.
    """
    fields = ("network", "network.name", "teacher.network")
    values = [value for key, _, value in (text.partition("=") for text in overrides) if key.strip() in fields]
    return tuple(absolute_name(name.strip()) for name in (network, *values) if name)


def _is_of_checkout(space: str | None) -> bool:
    return space is not None and find_space(space).resolve().is_relative_to(SPACES_FOLDER.resolve())

"""What a space file or a record may not do by itself: name code to run, or read outside the data folder.

Both may come from anybody. `--allow-code` allows the first; so does a name of a space that the user typed (`--network`,
`--set network.name=...`), and a space that this checkout carries. The second is allowed where the command line names
the data set (`--data`, `--set data...`) or the folder that holds it (`--data-dir`).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from lowrank.data import absolute_data_name, check_data_folder
from lowrank.errors import InputError
from lowrank.networks import absolute_name, check_own_code, is_own_code
from sweeps.space.files import SPACES_FOLDER, find_space
from sweeps.space.model import Space
from sweeps.space.run_options import RunOptions


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
        check_data_folder(space.data.name, data_dir, "the space")


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


def check_options(space: Space, options: RunOptions) -> None:
    """Check a space as `check_trust` does, with the permissions of the command line.

    Args:
        space: the space.
        options: what the user has typed, without what a study or a series has stored.

    Raises:
        InputError: as `check_trust`.
    """
    data_named = names_data(options.data, options.set)
    if options.resume:  # the space is on record: a name that was typed may be another
        data_named = options.data is not None and absolute_data_name(options.data) == space.data.name
    allow_code = options.allow_code or _is_of_checkout(options.space)
    typed_names = names_typed(options.network, options.set)
    check_trust(space, allow_code=allow_code, data_dir=options.data_dir, data_named=data_named, typed_names=typed_names)


def names_data(data: str | None, overrides: Sequence[str]) -> bool:
    """Tell whether a command line names the data set.

    That is permission to read it, wherever it lies.

    Args:
        data: the value of `--data`.
        overrides: the texts after `--set`, each `a.b=value`.

    Returns:
        Whether it does; a further field of the data set, such as `data.train_images`, is no name.
    """
    return bool(data) or any(text.partition("=")[0].strip() in ("data", "data.name") for text in overrides)


def permission_options(space: Space) -> str:
    """Return the options that must be typed again to resume a study.

    Its files may not give these permissions themselves.

    Args:
        space: the study's.

    Returns:
        The options, each with a space before it; empty where there are none.
    """
    return permissions_text(own_networks(space), space.data.name)


def permissions_text(networks: Collection[str], data_name: str) -> str:
    """Return the options that must be typed to use what a file names.

    Args:
        networks: their names; only code of the user's own needs permission.
        data_name: of the data set; only one outside of the data folder needs permission.

    Returns:
        The options, each with a space before it; empty where there are none.
    """
    options = " --allow-code" if any(map(is_own_code, networks)) else ""
    try:
        check_data_folder(data_name, None, "the space")
    except InputError:
        options += f" --data {shlex.quote(data_name)}"
    return options


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

"""Networks made by functions of the user's: `package.module:function` and `path/to/file.py:function`.

Modules are looked for as Python does, then in the working folder. Functions of a file see the modules beside it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

from lowrank.errors import InfeasibleError, InputError, LowrankError
from lowrank.networks.images import ImageShape
from lowrank.utils import absolute_path, describe_error, first_line, installed_folders

if TYPE_CHECKING:
    from torch import nn

FILE_NAME = r"(.+\.py):(\w+)"
MODULE_NAME = r"([A-Za-z_][\w.]*):(\w+)"
_PROJECT = Path(__file__).resolve().parents[3]
_OWN_PACKAGES = ("lowrank", "sweeps", "analysis")


def absolute_name(name: str) -> str:
    """Make the path within a network's name absolute.

    Workers may have another working folder.

    Args:
        name: of a network.

    Returns:
        The name; unchanged for a name without a path.
    """
    if name.startswith("hf:"):
        return f"hf:{absolute_path(name.removeprefix('hf:'), 'the folder of the network')}"
    if match := re.fullmatch(FILE_NAME, name):
        return f"{absolute_path(match[1], 'the file of the network')}:{match[2]}"
    return name


def same_file_elsewhere(name: str, other: str) -> bool:
    """Tell whether two names are one function of one file, perhaps elsewhere.

    Args:
        name: of a network.
        other: of a network.

    Returns:
        Whether they are; False unless both are `path/to/file.py:function`.
    """
    matches = [re.fullmatch(FILE_NAME, text) for text in (name, other)]
    first, second = ((Path(match[1]).name, match[2]) if match else None for match in matches)
    return first is not None and first == second


def imported_network(name: str, image_shape: ImageShape, classes: int, width: float) -> nn.Module:
    """Make a network by the user's function.

    The function gets those of the arguments `image_shape`, `in_channels`, `classes`, `num_classes` and `width` that it
    names.

    Args:
        name: `package.module:function` or `path/to/file.py:function`.
        image_shape: (C, H, W).
        classes: number of classes.
        width: multiple of the network's channels; 1 for a function without `width`.

    Returns:
        What the function returns.

    Raises:
        InputError: the function cannot be imported, has other required arguments, raises an error, or returns no
            network that can be trained (see `prepare_network`).
    """
    arguments = {
        "image_shape": image_shape, "in_channels": image_shape[0], "classes": classes, "num_classes": classes,
        "width": width,
    }  # fmt: skip
    function = import_function(name)
    positional, named = _select_arguments(name, function, arguments)
    if width != 1.0 and "width" not in named and "width" not in positional:
        raise width_unsupported(name)
    try:
        network = function(*positional.values(), **named)
    except LowrankError:
        raise
    except (Exception, SystemExit) as error:  # the user's function may raise anything; it must not end ours
        values = ", ".join(f"{key}={value}" for key, value in {**positional, **named}.items())
        call = f"{name.rpartition(':')[2]}({values})"
        raise InputError(f"network {name!r} raised an error for {call}: {describe_error(error)}") from error
    from torch import nn  # not above, where names of networks are read without torch

    from lowrank.networks.own_networks import prepare_network

    if not isinstance(network, nn.Module):
        raise InputError(f"{name} must return a torch.nn.Module, but returned a {type(network).__name__}")
    return prepare_network(network, name, image_shape)


def width_unsupported(name: str) -> InfeasibleError:
    """Return the error for a network that has no `width`.

    Args:
        name: of the network.

    Returns:
        The error, to be raised.
    """
    return InfeasibleError(f"{name} has no `width`, so it cannot be made thinner or wider")


def function_takes_width(name: str) -> bool:
    """Tell whether a function of the user's takes a `width`.

    Args:
        name: `package.module:function` or `path/to/file.py:function`; its module is imported.

    Returns:
        Whether it has an argument of that name.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        return "width" in inspect.signature(import_function(name)).parameters
    except ValueError:  # of a builtin
        return False


def _select_arguments(
    name: str, function: Callable[..., Any], arguments: dict[str, object]
) -> tuple[dict[str, object], dict[str, object]]:
    """Return what the function takes by position alone, and what it takes by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        raise InputError(f"{name} does not say which arguments it takes; write a function around it") from error
    positional: dict[str, object] = {}
    named: dict[str, object] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in arguments and parameter.default is parameter.empty:
            raise InputError(f"{name} asks for `{parameter.name}`; it can be given: {', '.join(sorted(arguments))}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional[parameter.name] = arguments.get(parameter.name, parameter.default)
        elif parameter.name in arguments:
            named[parameter.name] = arguments[parameter.name]
    return positional, named


def import_function(name: str) -> Callable[..., Any]:
    """Import the user's function.

    Args:
        name: `package.module:function` or `path/to/file.py:function`.

    Returns:
        The function.

    Raises:
        InputError: the module or file cannot be imported, or has no such function.
    """
    from lowrank.utils import prepare_torchvision  # it imports torch, see above

    prepare_torchvision()
    location, _, function_name = name.rpartition(":")
    module = _import_file(name, Path(location)) if re.fullmatch(FILE_NAME, name) else _import_module(name, location)
    function = getattr(module, function_name, None)
    if not callable(function):
        choices = [key for key, value in vars(module).items() if key[0] != "_" and _makes_network(value, module)]
        raise InputError(
            f"network {name!r}: {location} has no function or class {function_name!r}; it has: "
            f"{', '.join(choices) or 'none'}"
        )
    return function


def _makes_network(value: object, module: ModuleType) -> bool:
    """Tell whether an attribute of a module is a function, or a class of networks that the module defines."""
    from torch.nn import Module  # importing the user's code has imported torch already

    if inspect.isclass(value):  # imported classes, such as a block of torchvision, are no choices
        return issubclass(value, Module) and value.__module__ == module.__name__
    return inspect.isfunction(value)


def function_missing(path: str) -> InputError:
    """Return the error for a file that is named without its function.

    The file is read and not run.

    Args:
        path: of the file.

    Returns:
        The error, to be raised.
    """
    try:
        tree = ast.parse(Path(path).expanduser().read_bytes())
    except OSError:
        return InputError(f"network {path!r}: there is no file {path}; it is named path/to/file.py:function")
    except (SyntaxError, ValueError) as error:
        return InputError(f"network {path!r} cannot be read: {type(error).__name__}: {first_line(error)}")
    names = [node.name for node in tree.body if _may_make_network(node) and node.name[0] != "_"]
    example = names[0] if names else "function"
    return InputError(
        f"network {path!r} must name the function or class that makes it, such as {path}:{example}; the file has: "
        f"{', '.join(names) or 'none'}"
    )


def _may_make_network(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.ClassDef]:
    """Tell whether a statement defines a function, or a class with a base, which may be a network."""
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and bool(node.bases))


def _import_module(name: str, module_name: str) -> ModuleType:
    _search(Path.cwd())
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.partition(".")[0]):
            raise InputError(
                f"network {name!r} cannot be imported: ModuleNotFoundError: No module named {error.name!r}, neither "
                f"installed nor in {Path.cwd()}; path/to/file.py:function names a file"
            ) from error
        raise InputError(f"network {name!r} cannot be imported: {describe_error(error)}") from error


def _search(folder: Path) -> None:
    """Let Python look for modules in a folder too, after all others, so that nothing there hides an installed one."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_file(name: str, path: Path) -> ModuleType:
    """Import a file once in each process: what it defines must be the same for all who name it."""
    path = path.expanduser().resolve()
    module_name = shipped_module(path)
    if module_name in sys.modules:
        return sys.modules[module_name]
    shipped = importlib.util.find_spec(module_name)  # on a cluster, where the path may be another machine's
    if shipped is not None and shipped.origin is not None:
        path = Path(shipped.origin)
    elif not path.is_file():
        raise InputError(f"network {name!r}: there is no file {path}")
    _search(path.parent)
    _check_modules_beside(name, path)
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # as dataclasses and pickle look it up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        del sys.modules[module_name]
        raise InputError(f"network {name!r} cannot be imported: {describe_error(error)}") from error
    return module


def _check_modules_beside(name: str, path: Path) -> None:
    """Refuse a file that would import another module than the one of this name beside it.

    Python has one module of a name in a process: the file of a teacher and that of a student, in two folders, would
    share the one that is imported first. Installed modules come first, as everywhere.
    """
    to_read, checked = [path], {path}
    while to_read:
        for module_name in _imported_modules(to_read.pop()):
            files = (path.with_name(f"{module_name}.py"), path.parent / module_name / "__init__.py")
            beside = next((file.resolve() for file in files if file.is_file()), None)
            if beside is None or beside in checked:
                continue
            checked.add(beside)
            to_read.append(beside)
            other = _module_file(module_name)
            if other is None or any(other.is_relative_to(folder) for folder in installed_folders()):
                continue
            if other != beside and other.read_bytes() != beside.read_bytes():
                raise InputError(
                    f"network {name!r} imports `{module_name}`, but this process has that name from {other}, not from "
                    f"{beside}; rename one of the two"
                )


def _imported_modules(path: Path) -> Iterator[str]:
    """Yield the names of the top-level modules that a file imports, also within functions."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # the import itself says what is wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _module_file(module_name: str) -> Path | None:
    """Return the file that Python imports, or has imported, under a name; None where it is no file."""
    if module_name in sys.modules:
        origin = getattr(sys.modules[module_name], "__file__", None)
    else:
        spec = importlib.util.find_spec(module_name)
        origin = None if spec is None or not spec.has_location else spec.origin
    return None if origin is None else Path(origin).resolve()


def shipped_module(path: Path) -> str:
    """Return the name under which a file of networks is imported.

    It is the same on machines that the file is shipped to.

    Args:
        path: of the file, absolute.

    Returns:
        A name that no other file has.
    """
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def user_modules(name: str) -> dict[str, Path]:
    """List the user's modules that are imported for a network.

    They are shipped to machines that do not have them. The network must have been made in this process. Installed
    packages and this project are not among them.

    Args:
        name: of a network of the user's.

    Returns:
        By the name of each top-level module: its file, or the folder of its package.

    Raises:
        InputError: the function cannot be imported.
    """
    import_function(name)
    location = name.rpartition(":")[0]
    roots = {Path.cwd(), Path(location).parent} if re.fullmatch(FILE_NAME, name) else {Path.cwd()}
    files: dict[str, Path] = {}
    for module_name in list(sys.modules):
        if "." in module_name or module_name in (*_OWN_PACKAGES, "__main__"):
            continue
        module = sys.modules[module_name]
        origin = getattr(module, "__file__", None)
        if origin is None or not origin.endswith(".py"):
            continue
        path = Path(origin).resolve()
        path = path.parent if path.name == "__init__.py" else path
        if any(path.is_relative_to(root) for root in roots) and not _is_installed(path):
            files[module_name] = path
    return files


def _is_installed(path: Path) -> bool:
    project_folders = [_PROJECT / package for package in (*_OWN_PACKAGES, "tests", "benchmarks")]
    return any(path.is_relative_to(folder) for folder in (*installed_folders(), *project_folders))

"""Write the pages of docs/reference from the parsers, tables and exit codes, or check that they are up to date.

python docs/make_reference.py            # write
python docs/make_reference.py --check    # exit code 1 and a line for each page that is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # it is run as a script

from analysis.__main__ import COMMANDS  # noqa: E402
from lowrank.data import DataSettings  # noqa: E402
from lowrank.layers.registry import METHODS, VARIATIONAL_METHODS  # noqa: E402
from lowrank.networks import NetworkSettings  # noqa: E402
from lowrank.training import Recipe  # noqa: E402
from lowrank.utils.cli import EXIT_CODE_TEXTS, ExitCode, OneLineParser  # noqa: E402
from sweeps.records.tables import EPOCHS_SCHEMA, RESULTS_SCHEMA  # noqa: E402
from sweeps.space.settings import (  # noqa: E402
    AnswerSettings,
    BudgetSettings,
    ResourceSettings,
    SearchSettings,
    StartSettings,
    TeacherSettings,
)

TEXTS = yaml.safe_load((ROOT / "docs" / "reference_texts.yaml").read_text())
FIELDS = TEXTS["fields"]
FOLDER = ROOT / "docs" / "reference"
HEAD = "<!-- Written by `python docs/make_reference.py`; do not edit. -->\n"
# Command as it is typed -> the module that has its parser
PARSERS = {
    "python sweeps/run.py": "sweeps.study.command_line",
    "python sweeps/teacher.py": "sweeps.teacher",
    "python sweeps/spot.py": "sweeps.spot",
    "python -m sweeps.tracking": "sweeps.tracking.__main__",
    "python -m lowrank.compress": "lowrank.compress",
    "python -m lowrank.predict": "lowrank.predict",
    "python -m lowrank.count": "lowrank.count",
}
SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSettings, "network": NetworkSettings, "train": Recipe, "teacher": TeacherSettings,
    "budget": BudgetSettings, "start": StartSettings, "search": SearchSettings, "resources": ResourceSettings,
    "answer": AnswerSettings,
}  # fmt: skip
# Bounds of a JSON schema, as a page writes them
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def make_pages() -> dict[str, str]:
    """Make all pages.

    Returns:
        Text by the name of the file.
    """
    return {
        "commands.md": commands_page(),
        "space.md": space_page(),
        "columns.md": columns_page(),
        "exit_codes.md": exit_codes_page(),
    }


def commands_page() -> str:
    """Make the page of all commands and their options.

    Returns:
        Markdown.
    """
    lines = [HEAD, "# Commands and their options", ""]
    parsers = {name: import_module(module).make_parser() for name, module in PARSERS.items()}
    for name, (module, description) in COMMANDS.items():
        parser = OneLineParser(prog=f"python -m analysis {name}", description=description)
        import_module(module).add_arguments(parser)
        parsers[parser.prog] = parser
    lines += [f"* [`{name}`](#{_anchor(name)}): {_sentence(parser.description)}" for name, parser in parsers.items()]
    for name, parser in parsers.items():
        lines += ["", f"## `{name}`", "", _sentence(parser.description), "", *_options(parser)]
    return "\n".join(lines) + "\n"


def _anchor(name: str) -> str:
    """The anchor that GitHub gives the heading of a command."""
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter in " -_").replace(" ", "-")


def _sentence(text: str | None) -> str:
    assert text, "a command without a description"
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "| option | meaning |"
    yield "|---|---|"
    for group in parser._action_groups:  # argparse has no public list of them
        for action in group._group_actions:
            if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
                continue
            assert action.help, f"{parser.prog}: {action.dest} has no help"
            yield f"| `{_usage(action)}` | {_cell(_help(parser, action))} |"


def _usage(action: argparse.Action) -> str:
    values = action.metavar
    if values is None and action.nargs != 0:
        values = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    text = values if isinstance(values, str) else " ".join(values or ())
    if action.nargs in ("*", "+"):
        text += " ..."
    if not action.option_strings:
        return text
    return f"{', '.join(action.option_strings)} {text}".strip()


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def space_page() -> str:
    """Make the page of the fields of a space.

    Returns:
        Markdown.

    Raises:
        KeyError: a field has no text.
    """
    lines = [
        HEAD, "# Fields of a space", "",
        "The format of the file, domains and `--set`: [search_spaces/README.md](../../search_spaces/README.md). Beside "
        "the sections a space has `question` (a text), `references` (a list), `by_data` (fields for one data set "
        "alone) and `studies` (a series).",
    ]  # fmt: skip
    for section, model in SECTIONS.items():
        lines += [
            "",
            f"## `{section}`",
            "",
            TEXTS["sections"][section],
            "",
            "| field | type | default | meaning |",
            "|---|---|---|---|",
        ]
        if section == "train":
            lines.append(f"| `recipe` | text | | {_cell(FIELDS['train']['recipe'])} |")
        for name, schema in model.model_json_schema()["properties"].items():
            default = "" if schema.get("default") is None else f"`{_value(schema['default'])}`"
            lines.append(f"| `{name}` | {_type(schema)} | {default} | {_cell(FIELDS[section][name])} |")
        if section == "teacher":
            lines += _methods()
    return "\n".join(lines) + "\n"


def _methods() -> Iterator[str]:
    yield from ["", "## `method`", "", TEXTS["sections"]["method"], "", "| field | meaning |", "|---|---|"]
    texts = FIELDS["method"]
    yield from (f"| `{name}` | {_cell(text)} |" for name, text in texts.items())
    yield from ["", "| method | its fields, with types and defaults |", "|---|---|"]
    for method, model in {**METHODS, **VARIATIONAL_METHODS}.items():
        fields = []
        for name, schema in model.model_json_schema()["properties"].items():
            if name == "name":
                continue
            assert name in texts, f"the field {name} of {method} has no text"
            default = "" if schema.get("default") is None else f" ({_value(schema['default'])})"
            fields.append(f"`{name}`: {_type(schema)}{default}")
        yield f"| `{method}` | {'; '.join(fields)} |"


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    words = {
        "string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "array": "list",
        "object": "fields",
    }[schema["type"]]  # fmt: skip
    return " ".join([words, *(f"{text} {schema[key]:g}" for key, text in BOUNDS.items() if key in schema)])


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def columns_page() -> str:
    """Make the page of the tables' columns, which are MLflow's metrics too.

    Returns:
        Markdown.
    """
    lines = [
        HEAD, "# Columns of a study's tables, and metrics in MLflow", "",
        "Errors are top-1 errors in percent, losses are means over images, durations are seconds, times are seconds "
        "since 1970. MLflow has the metrics of `epochs.parquet` and the sizes under the same names.",
    ]  # fmt: skip
    for file, schema in (("results.parquet", RESULTS_SCHEMA), ("epochs.parquet", EPOCHS_SCHEMA)):
        row = "a trial" if file.startswith("results") else "an epoch of a trial"
        lines += ["", f"## `{file}`: one row {row}", "", "| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{field.name}` | {field.type} | {TEXTS['columns'][field.name]} |" for field in schema]
    return "\n".join(lines) + "\n"


def exit_codes_page() -> str:
    """Make the page of exit codes.

    Returns:
        Markdown.
    """
    lines = [HEAD, "# Exit codes", "", "The same for every command.", "", "| code | meaning |", "|---|---|"]
    return "\n".join([*lines, *(f"| {int(code)} | {EXIT_CODE_TEXTS[code]} |" for code in ExitCode)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the pages.

    Args:
        arguments: the command line; None for that of the process.

    Returns:
        The exit code: 1 if `--check` finds a page that is out of date.
    """
    parser = OneLineParser(prog="python docs/make_reference.py", description="Write the pages of docs/reference.")
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args(arguments).check
    FOLDER.mkdir(exist_ok=True)
    stale = 0
    for name, text in make_pages().items():
        path = FOLDER / name
        if check and (not path.is_file() or path.read_text() != text):
            print(f"docs/reference/{name} is out of date: python docs/make_reference.py writes it anew")
            stale = 1
        elif not check:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())

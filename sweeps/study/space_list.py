"""`--list`: the spaces that the repository carries, each with its question."""

from __future__ import annotations

import json

from sweeps.space import available_spaces, read_yaml


def print_spaces(*, as_json: bool) -> int:
    """Print every space with its question.

    Args:
        as_json: print JSON instead of lines.

    Returns:
        The exit code.

    Raises:
        InputError: a space file is damaged.
    """
    questions = {
        name: " ".join(str(read_yaml(path).get("question")).split()) for name, path in available_spaces().items()
    }
    if as_json:
        print(json.dumps([{"name": name, "question": question} for name, question in questions.items()], indent=2))
    else:
        width = max(map(len, questions))
        for name, question in questions.items():
            print(f"{name:{width}} {question}")
    return 0

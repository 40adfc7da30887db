"""What readers copy from the pages is accepted by the code of today: commands, fields, spaces, lines of Python.

Nothing is trained here. The commands of the guides that are run are in tests/lowrank/deployment/test_compress_guide.py
and tests/end_to_end/test_page_studies.py.
"""

from __future__ import annotations

import ast
import copy
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import lowrank
from sweeps.space.parse import parse_space
from sweeps.space.run_options import RunOptions, Task
from sweeps.study.series import for_each_study
from sweeps.teacher import TeacherConfig, space_of_teacher
from tests.support.pages import PAGES, PROJECT, ROOT, blocks, commands, commands_in_sentences, page_id, parser_of

GUIDES = [page for page in PAGES if "results" not in page.parts]
# A file that stands for those of a reader; the pages name its functions
NETWORK = """
import torch


def make(image_shape, num_classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(image_shape[0], 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes)
    )
"""
READERS_SPACE = "question: Which is best?\ndata: {name: digits}\nmethod: {name: bottleneck}\nbudget: {params: 9000}\n"
CODE_WIDTH = 88  # columns
# Its commands stand there as they were typed on the day of the run
AS_TYPED_THEN = (ROOT / "docs" / "results" / "research_log.md",)
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_YAML = [page for page in PAGES if blocks(page, "yaml")]


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the pages take for granted."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_net.py", "my_vit.py"):
        Path(name).write_text(NETWORK)
    for name in ("my_weights.pth", "my_resnet18.pth", "resnet18.pth"):
        Path(name).touch()
    Path("my_space.yaml").write_text(READERS_SPACE)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if page not in AS_TYPED_THEN], ids=page_id)
def test_commands_have_the_options_that_they_are_shown_with(page: Path) -> None:
    for words in commands(page):
        parser, rest = parser_of(words)
        if parser is not None:
            try:
                parser.parse_args(rest)
            except SystemExit:
                pytest.fail(f"{page_id(page)}: python {' '.join(words)}")


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_commands_in_sentences_have_their_options(page: Path) -> None:
    """A sentence may leave out what a command needs."""
    for words in commands_in_sentences(page):
        parser, rest = parser_of(words)
        flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
        if parser is not None and flags:
            accepted = set(re.findall(r"--[a-z][\w-]*", parser.format_help()))
            assert flags <= accepted, f"{page_id(page)}: python {' '.join(words)}"


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_spaces_and_fields_of_commands_exist(page: Path, readers_folder: Path) -> None:
    """Every `--space` is one that exists or that the page shows, and accepts every `--set` beside it."""
    for text in blocks(page, "yaml"):
        for name in re.findall(r"`(\w+\.yaml)`", page.read_text()):
            if "question" in (yaml.safe_load(text) or {}):
                (readers_folder / name).write_text(text)
    for words in commands(page):
        parser, rest = parser_of(words)
        if words[0] == "sweeps/run.py":
            options = RunOptions(**vars(parser.parse_args(rest)))
            if options.task() in (Task.START, Task.PLAN, Task.PROBE) and options.space and options.space.islower():
                for_each_study(lambda space, options: 0, options)
        elif words[0] == "sweeps/teacher.py":
            config = TeacherConfig(**vars(parser.parse_args(rest)))
            if config.network is not None:
                space_of_teacher(config)


@pytest.mark.parametrize("page", WITH_YAML, ids=page_id)
def test_yaml_is_part_of_a_space(page: Path) -> None:
    """A block without a question shows some sections, which a whole space accepts."""
    for text in blocks(page, "yaml"):
        content = yaml.safe_load(text)
        parse_space("shown", content if "question" in content else yaml.safe_load(READERS_SPACE) | content)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_lines_of_python_use_what_exists(page: Path) -> None:
    """What is imported from this project's packages, and the functions of `lowrank` that are called."""
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PROJECT:
                module, names = import_module(str(node.module)), [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lowrank":
                module, names = lowrank, [node.attr]
            else:
                continue
            missing = [name for name in names if not hasattr(module, name)]
            assert not missing, f"{page_id(page)}: {module.__name__} has no {missing}"


def test_the_python_of_the_readme_does_what_its_comments_say(capsys) -> None:
    (text,) = blocks(ROOT / "README.md", "python")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.Conv2d(8, 32, 3, padding=1),
        torch.nn.Conv2d(32, 32, 3, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    ).eval()
    student = copy.deepcopy(network)
    before = sum(parameter.numel() for parameter in network.parameters())
    names = {"network": network, "student": student, "batches": [torch.randn(16, 3, 12, 12)]}
    exec(text, names)
    assert sum(parameter.numel() for parameter in network.parameters()) == before
    assert sum(parameter.numel() for parameter in names["small"].parameters()) <= before / 2
    assert capsys.readouterr().out.startswith("substituted 2 layers, ")
    assert sum(parameter.numel() for parameter in student.parameters()) < before


@pytest.mark.parametrize("page", [page for page in GUIDES if "reference" not in page.parts], ids=page_id)
def test_code_fits_a_narrow_window(page: Path) -> None:
    lines = [
        line for language in ("sh", "python", "yaml") for text in blocks(page, language) for line in text.splitlines()
    ]
    assert [line for line in lines if len(line) > CODE_WIDTH] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_knows_its_targets(page: Path) -> None:
    targets = set(re.findall(r"^([\w.$()/-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {".venv/.ready"}
    shown = re.findall(r"(?:^|`| {4})make ([\w./-]+)", page.read_text(), re.MULTILINE)
    assert set(shown) <= targets, f"{page_id(page)}: make {set(shown) - targets}"

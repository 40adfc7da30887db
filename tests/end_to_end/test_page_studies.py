"""What the pages say a reader can do, done: their commands and lines of Python, with one epoch where they train.

Commands of the guide on compression are run in tests/lowrank/deployment/test_compress_guide.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pages import ROOT, blocks, commands
from tests.support.waiting import scaled

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
GUIDES = ROOT / "docs" / "guides"
FIRST = "python sweeps/run.py --space first.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(words: list[str], folder: Path) -> str:
    """Run a command of a page in a folder of the test; `words` are those after `python`."""
    program = words if words[0] == "-m" or Path(words[0]).is_absolute() else [str(ROOT / words[0]), *words[1:]]
    done = subprocess.run(
        [sys.executable, *program], check=False, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=scaled(300),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def first_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the README's first study, and what the command printed."""
    folder = tmp_path_factory.mktemp("first")
    (text,) = blocks(README, "yaml")
    (folder / "first.yaml").write_text(text)
    assert f"`{FIRST}`" in README.read_text()
    short = ["--set", "train.epochs=1", "--set", "search.repeats=1"]
    return folder, run([*shlex.split(FIRST)[1:], *short], folder)


@pytest.mark.study
def test_the_first_question_of_the_readme_ends_with_an_answer(first_study: tuple[Path, str]) -> None:
    _, printed = first_study
    for words in (
        "tensor train ",
        "bottleneck ",
        "separable ",
        "dense ",
        "At up to 26,000 parameters (50 % of separable)",
    ):
        assert words in printed


@pytest.mark.study
def test_the_script_for_a_debugger_trains_a_trial(first_study: tuple[Path, str]) -> None:
    folder, _ = first_study
    (lines,) = blocks(CONTRIBUTING, "python")
    script = folder / "debug.py"
    script.write_text(lines)
    import pandas

    trial = pandas.read_parquet(folder / "studies" / "first" / "results.parquet")["trial_id"][0]
    assert re.search(r"^1 \d", run([str(script), "first", trial[:6]], folder), re.MULTILINE)


def test_the_three_commands_of_the_readme_compress_a_network(tmp_path: Path) -> None:
    Image.effect_noise((8, 8), 64).save(tmp_path / "digit.png")
    train, compress, predict = commands(README)
    run([*train, "--epochs", "1"], tmp_path)
    assert "written to smaller" in run(compress, tmp_path)
    assert "digit.png" in run(predict, tmp_path)


def test_the_space_of_the_guide_on_one_size_is_planned(tmp_path: Path) -> None:
    guide = GUIDES / "sweep.md"
    (text,) = blocks(guide, "yaml")
    (tmp_path / "ten.yaml").write_text(text)
    command = "python sweeps/run.py --space ten.yaml --plan"
    assert f"`{command}`" in guide.read_text()
    assert "tensor_train" in run(shlex.split(command)[1:], tmp_path)


def test_the_lines_of_the_guide_on_bayesian_compression_run(tmp_path: Path) -> None:
    (lines,) = blocks(GUIDES / "bayesian.md", "python")
    script = tmp_path / "lines.py"
    script.write_text(lines.replace("range(30)", "range(2)"))
    sizes = [int(number) for number in re.findall(r"'params': (\d+)", run([str(script)], tmp_path))]
    assert len(sizes) == 3
    assert all(size <= limit for size, limit in zip(sizes, (15_000, 7_500, 4_000), strict=True))


def test_the_commands_of_the_example_write_the_log(tmp_path: Path) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    for name in ("tt_schedule", "tt_schedule_finish"):
        kept = f"docs/results/{name}.journal.jsonl.gz"
        (tmp_path / kept).symlink_to(ROOT / kept)
    block = next(block for block in blocks(GUIDES / "research_log.md", "sh") if "gunzip" in block)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # whose python is that of the tests
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-e", "-c", block], check=True, cwd=tmp_path, env=environment, timeout=scaled(300))
    log = (tmp_path / "docs" / "results" / "research_log.md").read_text()
    assert "the sweep of 2019" in log
    assert "At equal size Tucker is" in log

"""The commands and lines of the guide "Compress the network you have" are accepted and do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from lowrank.compress import main, parse_config
from lowrank.data import DataSettings, eval_batches, load_data
from lowrank.io import load_model

ROOT = Path(__file__).parents[3]
WEIGHTS = ROOT / "tests" / "data" / "digits_resnet9.safetensors"
GUIDE = (ROOT / "docs" / "guides" / "compress.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of each command of the guide, without `python -m lowrank.compress`."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m lowrank.compress")]


def commands_on_digits() -> list[list[str]]:
    """Those of the commands for which the reader brings no images."""
    return [arguments for arguments in commands() if "digits" in arguments]


def with_own_files(arguments: list[str], out: Path) -> list[str]:
    """The command with the weights of the tests, which are a quarter as wide, and a folder of the test."""
    values = {"my_weights.pth": str(WEIGHTS), "my_resnet18.pth": str(WEIGHTS), "0.25": "0.0625", "smaller": str(out)}
    return [
        values.get(value, value) if flag in ("--weights", "--width", "--out") else value
        for flag, value in zip(["", *arguments], arguments, strict=False)
    ]


def test_every_command_of_the_guide_is_accepted(tmp_path) -> None:
    assert len(commands()) >= 2
    for arguments in commands():
        config = parse_config(with_own_files(arguments, tmp_path / "out"))
        assert config.weights == WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(commands_on_digits())))
def test_a_command_of_the_guide_writes_what_it_says(index: int, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(with_own_files(commands_on_digits()[index], out)) == 0
    folder = out if (out / "README.md").is_file() else next(path for path in out.iterdir() if path.is_dir())
    for name in ("factorised.safetensors", "README.md", "report.json"):
        assert (folder / name).is_file()
    assert any(path.suffix == ".onnx" for path in folder.iterdir())
    assert "written to" in capsys.readouterr().out


def test_the_lines_of_python_run() -> None:
    batches = eval_batches(load_data(DataSettings()), "train", device="cpu", batch_size=96)
    images = [next(iter(batches))[0]]  # few, so that this runs in CI
    names = {"network": load_model(WEIGHTS), "batches": images}
    (lines,) = blocks("python")
    exec(lines, names)
    small = names["small"]
    assert small.params <= 0.5 * small.dense_params  # type: ignore[attr-defined]
    assert torch.isfinite(small.network(images[0])).all()  # type: ignore[attr-defined]

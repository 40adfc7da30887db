"""A space says which layers are replaced; a study in which none can be is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lowrank.networks import NetworkSettings
from sweeps.run import main

SPACE: dict[str, Any] = {
    "question": "any", "data": "digits", "network": "resnet9",
    "method": {"name": "svd", "rank_scale": {"choice": [0.25, 0.5]}}, "train": {"epochs": 1},
    "search": {"sampler": "grid", "stop": "none"},
}  # fmt: skip


@pytest.fixture
def space(tmp_path, monkeypatch):
    """The path of a space, beside a file with a network of one convolution, the stem, and linear maps."""
    monkeypatch.chdir(tmp_path)
    own = (
        "from torch import nn\n\n\ndef make(num_classes):\n    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()]\n"
    )
    own += "    return nn.Sequential(*layers, nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, num_classes))\n"
    (tmp_path / "nets.py").write_text(own)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPACE))
    return str(tmp_path / "small.yaml")


def test_a_study_without_a_layer_to_replace_is_refused(space, tmp_path, capsys):
    arguments = ["--space", space, "--network", "nets.py:make", "--out", str(tmp_path / "studies")]
    for more in ([], ["--plan"]):
        assert main([*arguments, *more]) == 2
        captured = capsys.readouterr()
        assert "nothing is replaced in " in captured.err
        assert "nets.py:make: add `linear: true` to `network`" in captured.err
        assert captured.err.count("\n") == 1
    assert "layers: 0 of 3 are replaced\n  0  3 x 3 1-4      kept: the stem\n" in captured.out
    assert not (tmp_path / "studies").exists()


def test_a_space_is_not_refused_if_a_value_of_a_searched_field_has_layers_to_replace(space, capsys):
    arguments = ["--space", space, "--plan", "--network", "nets.py:make"]
    searched = "network.linear={choice: [false, true]}"
    assert main([*arguments, "--set", searched]) == 0
    assert "nothing is replaced" not in capsys.readouterr().err
    assert main([*arguments, "--set", searched, "--keep", "*"]) == 2
    assert "nothing is replaced in " in capsys.readouterr().err


def test_a_plan_lists_layers_that_are_replaced_or_kept_and_why(space, capsys):
    arguments = ["--space", space, "--plan", "--network", "nets.py:make", "--set", "network.linear=true"]
    assert main([*arguments, "--keep", "5"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.partition("layers: ")[2].splitlines()]
    assert lines == [
        ["1", "of", "3", "are", "replaced"], ["0", "3", "x", "3", "1-4", "kept:", "the", "stem"],
        ["3", "linear", "144-16", "replaced"], ["5", "linear", "16-10", "kept:", "by", "name", "(5)"],
    ]  # fmt: skip
    assert main([*arguments, "--only", "5"]) == 0
    assert "  3  linear 144-16  kept: not among 5\n" in capsys.readouterr().out
    assert main([*arguments, "--only", "nix"]) == 2
    assert "no layer is called 'nix'; choose from: 0, 3, 5" in capsys.readouterr().err


def test_patterns_of_layers_leave_dumps_of_other_networks_as_they_were():
    assert not {"keep", "only"} & NetworkSettings(name="resnet9").model_dump().keys()
    dump = NetworkSettings(keep="stage1.*", only=["a", "b"]).model_dump(mode="json")
    assert (dump["keep"], dump["only"]) == (["stage1.*"], ["a", "b"])
    assert NetworkSettings(keep=[5]).keep == ("5",)
    assert NetworkSettings(**dump) == NetworkSettings(keep=("stage1.*",), only=("a", "b"))


def test_a_width_of_the_space_is_left_out_for_a_network_without_one(space, tmp_path, capsys):
    content = {**SPACE, "network": {"name": "resnet9", "width": 0.25}}
    (tmp_path / "thin.yaml").write_text(yaml.safe_dump(content))
    arguments = ["--space", str(tmp_path / "thin.yaml"), "--plan", "--network", "nets.py:make"]
    assert main([*arguments, "--set", "network.linear=true"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "nets.py:make has no `width`: the space's, 0.25, is left out\n"
    assert "nets.py:make, 2,530 parameters\n" in captured.out
    assert main([*arguments, "--set", "network.linear=true", "--set", "network.width=0.25"]) == 2
    assert "nets.py:make has no `width`, so it cannot be made thinner" in capsys.readouterr().err


def test_a_network_without_width_has_no_thinner_one_and_the_study_goes_on(space, tmp_path, capsys):
    method = {"name": {"choice": ["svd", "thin_dense"]}}
    budget = {"params": 0.5, "relative_to": "separable"}
    content = {**SPACE, "method": method, "budget": budget, "references": ["dense", "thin_dense"]}
    (tmp_path / "thin.yaml").write_text(yaml.safe_dump(content))
    arguments = ["--space", str(tmp_path / "thin.yaml"), "--plan", "--network", "nets.py:make"]
    assert main([*arguments, "--set", "network.linear=true"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("nets.py:make has no `width`, so it cannot be made thinner") == 2  # the point, the reference

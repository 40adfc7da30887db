"""A study that starts from a file: the file is checked before anything starts, by every worker, and on resume."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lowrank.errors import InputError
from lowrank.io import save_tensors
from lowrank.networks.registry import NetworkSettings, make_network
from sweeps.execution.initial_weights import set_initial_weights
from sweeps.records.events import Event
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE
from sweeps.records.specification import Trial
from sweeps.records.study_folders import write_space_file
from sweeps.run import main
from sweeps.search.reuse import weights_path
from sweeps.space import StoredOptions
from sweeps.space.model import Space
from sweeps.space.parse import parse_space
from sweeps.trials.build import make_student
from sweeps.trials.resolver import Resolver
from sweeps.trials.trained_network import check_start, fetch_weights
from tests.support.specifications import change

CONTENT: dict[str, Any] = {
    "question": "Which?", "data": {"name": "digits"}, "network": {"name": "resnet9", "width": 0.125},
    "train": {"epochs": 2}, "method": {"name": "bottleneck"},
    "budget": {"params": 0.7, "relative_to": "separable"},
}  # fmt: skip


def trained(seed: int = 5, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return make_network(NetworkSettings(width=0.125), (1, 8, 8), classes)


def write(path: Path, network: nn.Module) -> Path:
    """A file as others write it: half precision, from several cards, under a key."""
    state = {f"module.{name}": tensor for name, tensor in network.half().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def space(path: Path, **sections: Any) -> Space:
    start = {"how": "dense", "weights": str(path)}
    return parse_space("small", {**copy.deepcopy(CONTENT), "start": start, **sections})


def trial(path: Path, digits: Any) -> Trial:
    return Resolver(space(path), digits).resolve({})


def test_the_file_is_checked_before_the_study_begins(digits, tmp_path):
    path = write(tmp_path / "weights.pth", trained())
    line, origin = check_start(space(path), digits)
    assert origin.startswith("the weights have no teacher.json beside them")
    assert line.startswith(f"weights: {path} (torch, sha256 ")
    assert line.endswith("tensors, from `state_dict`, prefix `module.` stripped, stored as float16")
    assert check_start(space(path, start="scratch"), digits) == []
    with pytest.raises(InputError, match=r"`start.weights`: .* do not fit ResNet9: \d+ of another shape"):
        check_start(space(path, network={"name": "resnet9", "width": 0.25}), digits)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"`start.weights`: .* must be a safetensors file or a whole file of torch"):
        check_start(space(path), digits)
    path.unlink()
    with pytest.raises(
        InputError, match=r"there is no file .* --network resnet9 --width 0\.125 --data digits --name NAME"
    ):
        check_start(space(path), digits)
    with pytest.raises(InputError, match=r"there is no file .* --network torchvision:resnet18 --data digits"):
        check_start(space(path, network={"name": "torchvision:resnet18"}), digits)  # it has no width


def test_a_wrong_file_ends_the_command(tmp_path, capsys):
    path = write(tmp_path / "weights.pth", trained())
    torch.save(nn.Linear(1, 1), path)
    where = ("--out", str(tmp_path / "studies"))
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps({**CONTENT, "start": {"how": "dense", "weights": str(path)}}))
    for plan in ([], ["--plan"]):
        assert main(["--space", str(file), *where, *plan]) == 2
        assert "holds a pickled `torch.nn.modules.linear.Linear`" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize("start", [None, "scratch", {"how": "scratch"}, {"choice": ["scratch", "dense"]}])
def test_network_and_weights_are_flags_of_the_command(tmp_path, monkeypatch, capsys, start):
    write(tmp_path / "weights.pth", trained())
    file = tmp_path / "small.yaml"
    content = {key: value for key, value in CONTENT.items() if key != "network"}
    file.write_text(json.dumps({**content, "network": {"width": 0.125}, **({"start": start} if start else {})}))
    monkeypatch.chdir(tmp_path)
    command = ["--space", str(file), "--weights", "weights.pth", "--plan"]
    assert main([*command, "--network", "resnet9"]) == 0
    assert f"weights: {tmp_path / 'weights.pth'} (torch" in capsys.readouterr().out
    assert main([*command, "--network", "wrn_10_1"]) == 2
    assert "its tensors do not fit WideResNet" in capsys.readouterr().err


def test_a_trial_starts_from_the_file(digits, tmp_path):
    source = trained()
    specification = trial(write(tmp_path / "weights.pth", source), digits).specification
    student, _ = make_student(specification, digits)
    set_initial_weights(student, specification, digits, str(tmp_path))
    assert torch.equal(student.get_parameter("classifier.weight"), source.float().get_parameter("classifier.weight"))


def test_a_trial_starts_from_the_checkpoint_of_another_trial(digits, tmp_path):
    specification = change(trial(write(tmp_path / "weights.pth", trained()), digits).specification, start={
        "from": "trial:dense-1", "fingerprint": ""})  # fmt: skip
    assert specification.start.trial_id == "dense-1"
    student, _ = make_student(specification, digits)
    path = weights_path(tmp_path, "dense-1")
    with pytest.raises(InputError, match=re.escape(f"the weights to start from are not there: {path}")):
        set_initial_weights(student, specification, digits, str(tmp_path))
    path.parent.mkdir(parents=True)
    source = trained(9)
    save_tensors(path, dict(source.state_dict()), {})
    layers = set_initial_weights(student, specification, digits, str(tmp_path))
    assert torch.equal(student.get_parameter("classifier.weight"), source.get_parameter("classifier.weight"))
    assert layers
    assert {layer["name"] for layer in layers} <= dict(student.named_modules()).keys()
    assert all(layer["output_error"] > 0 for layer in layers)  # a bottleneck is thinner than what it replaces


def test_a_head_for_other_classes_begins_anew_from_the_trials_seed(digits, tmp_path):
    path = write(tmp_path / "weights.pth", trained(classes=7))
    assert check_start(space(path), digits)[1] == (
        "the last layer `classifier` begins anew: the file's has 7 outputs, this network's 10"
    )
    specification = trial(path, digits).specification
    students = [make_student(specification, digits)[0] for _ in range(2)]
    for student in students:
        set_initial_weights(student, specification, digits, str(tmp_path))
        torch.rand(3)  # the head does not depend on what was drawn before
    heads = [student.get_parameter("classifier.weight") for student in students]
    assert torch.equal(*heads)


def test_another_file_at_that_path_is_refused_by_every_worker(digits, tmp_path):
    path = write(tmp_path / "weights.pth", trained())
    specification = trial(path, digits).specification
    student, _ = make_student(specification, digits)
    write(path, trained(6))
    before = student.get_parameter("classifier.weight").clone()
    began = specification.start.fingerprint
    message = rf"have changed: .* has the fingerprint \w{{16}}, but the study began with {began}"
    with pytest.raises(InputError, match=message):
        set_initial_weights(student, specification, digits, str(tmp_path))
    assert torch.equal(student.get_parameter("classifier.weight"), before)
    path.unlink()
    with pytest.raises(InputError, match="the weights to start from are not there"):
        set_initial_weights(student, specification, digits, str(tmp_path))


def test_another_file_at_that_path_is_refused_on_resume(digits, tmp_path, capsys):
    path = write(tmp_path / "weights.pth", trained())
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    resolved = trial(path, digits)
    write_space_file(folder, space(path).source, StoredOptions(space="small", data_dir=None, tracking_uri=None))
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, name="mine", data={"fingerprint": digits.fingerprint})
    journal.append(
        Event.PROPOSED, trial=resolved.trial_id, role=str(resolved.role), stratum=resolved.stratum,
        parameters=resolved.point, specification=resolved.specification.to_json(), counts=resolved.counts, proposal={},
        point_id=resolved.point_id,
    )  # fmt: skip
    journal.close()
    write(path, trained(6))
    before = (folder / JOURNAL_FILE).read_bytes()
    assert main(["--resume", "mine", "--out", str(tmp_path / "studies")]) == 2
    assert "the weights to start from have changed" in capsys.readouterr().err
    assert (folder / JOURNAL_FILE).read_bytes() == before
    assert main(["--resume", "mine", "--out", str(tmp_path / "studies"), "--weights", str(path)]) == 2
    assert "--weights would change the question of the study" in capsys.readouterr().err


OWN_NETWORKS = """
import torch
from torch import nn


def layers(num_classes):
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(8, num_classes))


def trained(num_classes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        network = layers(7)
    network[5] = nn.Linear(8, num_classes)  # a new head, drawn by the seed
    return network
"""


@pytest.fixture
def own_space(tmp_path):
    """Returns a space that starts from the weights of a network of a file beside it."""
    (tmp_path / "start_nets.py").write_text(OWN_NETWORKS)
    method = {"name": "separable"}

    def make(function: str = "trained", **sections: Any) -> dict[str, Any]:
        network = {"name": f"{tmp_path}/start_nets.py:{function}"}
        own = {**copy.deepcopy(CONTENT), "network": network, "method": method, "start": {
            "how": "dense", "weights": "network"}}  # fmt: skip
        own.pop("budget")
        return {**own, **sections}

    return make


def test_students_start_from_the_weights_that_the_network_is_built_with(own_space, digits, tmp_path):
    space = parse_space("own", own_space(references=["dense"]))
    resolver = Resolver(space, digits)
    source = make_network(space.network, digits.image_shape, 10)
    trials = [resolver.resolve({}), *resolver.references()[0]]
    for specification in (trial.specification for trial in trials):
        assert specification.start.source == "network"
        students = []
        for seed in (0, 3):
            reseeded = change(specification, seed=seed)
            student, _ = make_student(reseeded, digits)
            set_initial_weights(student, reseeded, digits, str(tmp_path))
            students.append(student)
        assert torch.equal(students[0].get_parameter("0.weight"), source.get_parameter("0.weight"))
        assert not torch.equal(*(student.get_parameter("5.weight") for student in students))  # the new head
    changed = change(trials[0].specification, start={"fingerprint": "0" * 16})
    with pytest.raises(InputError, match=r"have changed: .*start_nets\.py:trained has the fingerprint"):
        set_initial_weights(student, changed, digits, str(tmp_path))


def test_a_plan_says_that_students_start_from_the_network_itself(own_space, tmp_path, capsys):
    file = tmp_path / "own.yaml"
    command = ["--space", str(file), "--plan", "--allow-code", "--out", str(tmp_path / "studies")]
    file.write_text(json.dumps(own_space()))
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "start_nets.py:trained is built with (fingerprint " in out
    assert "start_nets.py:trained gives; all others start from these too\n" in out
    for function, sections, message in (
        ("layers", {}, "start_nets.py:layers draws its weights by the seed"),
        ("trained", {"start": "dense"}, "(network: those that the network itself is built with)"),
        ("trained", {"teacher": {"weights": "start"}, "train": {"epochs": 2, "kd_weight": 0.5}},
         "`teacher.weights: start` needs a file of weights, but `start.weights` is network"),
    ):  # fmt: skip
        file.write_text(json.dumps(own_space(function, **sections)))
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def tiny_timm(create_model: Any) -> Any:
    """A stand-in for timm with one network."""
    names = {"is_model": lambda name: name == "tiny", "get_pretrained_cfg": lambda name: None}
    return SimpleNamespace(**names, create_model=create_model, list_models=lambda: ["tiny"])


def test_published_weights_are_fetched_before_a_study_starts(digits, monkeypatch):
    calls: list[bool] = []

    def create(name: str, pretrained: bool, **_: Any) -> nn.Module:
        calls.append(pretrained)
        return nn.Linear(1, 1)

    monkeypatch.setitem(sys.modules, "timm", tiny_timm(create))
    own = {key: value for key, value in CONTENT.items() if key != "budget"}
    network = {"name": "timm:tiny", "weights": "DEFAULT"}
    fetch_weights(parse_space("s", {**own, "method": {"name": "separable"}, "network": network}), digits)
    assert calls == [True]
    network["weights"] = {"choice": [None, "DEFAULT"]}
    fetch_weights(parse_space("s", {**own, "method": {"name": "separable"}, "network": network}), digits)
    assert calls == [True, True]


def test_a_study_whose_published_weights_cannot_be_had_is_refused(tmp_path, monkeypatch, capsys):
    def create(name: str, pretrained: bool, **_: Any) -> nn.Module:
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "timm", tiny_timm(create))
    file = tmp_path / "small.yaml"
    command = ["--space", str(file), "--out", str(tmp_path / "studies")]
    for name, message in (
        ("timm:tiny", "error: the weights of timm:tiny are not on this machine and cannot be downloaded: no route"),
        (
            "resnet9",
            "error: `weights` are those of torchvision, timm, hf networks: resnet9 has none, but got 'DEFAULT'",
        ),
    ):
        file.write_text(json.dumps({**CONTENT, "network": {"name": name, "weights": "DEFAULT"}}))
        assert main(command) == 2
        assert capsys.readouterr().err == f"{message}\n"
        assert not (tmp_path / "studies").exists()
    assert main([*command, "--plan"]) == 2
    assert capsys.readouterr().err == f"{message}\n"

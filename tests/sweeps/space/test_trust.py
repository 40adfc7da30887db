"""A space from anybody runs no code and reads no folder that its user has not allowed."""

from __future__ import annotations

import pytest

from lowrank.errors import InputError
from sweeps.space.parse import parse_space, space_from_content
from sweeps.space.run_options import RunOptions
from sweeps.space.trust import check_options, check_trust, permission_options


def written_space(folder):
    """The path of a space file outside of this checkout."""
    (folder / "small.yaml").write_text("question: any\n")
    return str(folder / "small.yaml")


def space_with(content: dict, **sections):
    return parse_space("small", {**content, **sections})


@pytest.mark.parametrize(
    "sections",
    [
        {"network": {"name": "mine.nets:make"}},
        {"network": {"name": {"choice": ["resnet9", "mine.nets:make"]}}, "budget": {"params": 60_000}},
        {
            "teacher": {"network": "mine.nets:make", "train": {"epochs": 1}},
            "train": {"epochs": 2, "kd_weight": 0.5},
        },
    ],
    ids=["network", "searched network", "teacher"],
)
def test_a_network_in_the_users_code_must_be_allowed(content, sections):
    space = space_with(content, **sections)
    with pytest.raises(InputError, match=r"names code to run, the network 'mine.nets:make'; --allow-code allows it"):
        check_trust(space, allow_code=False)
    check_trust(space, allow_code=True)


@pytest.mark.parametrize(
    "typed", [{"network": "nets.py:make"}, {"set": ["network.name=nets.py:make"]}, {"set": ["network=nets.py:make"]}]
)
def test_a_name_typed_on_the_command_line_is_permission(content, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    space = space_with(content, network={"name": f"{tmp_path}/nets.py:make"})
    check_options(space, RunOptions(space=written_space(tmp_path), **typed))
    with pytest.raises(InputError, match="--allow-code allows it"):
        check_options(space, RunOptions(space=written_space(tmp_path), network="other.py:make"))


def test_a_space_of_this_checkout_may_name_code(content):
    check_options(space_with(content, network={"name": "mine.nets:make"}), RunOptions(space="tt_dims"))


def test_paths_in_names_of_networks_become_absolute(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    networks = {"name": {"choice": ["resnet9", "nets.py:make"]}}
    space = space_from_content("small", {**content, "network": networks, "budget": {"params": 60_000}})
    assert space.domains["network.name"].corners() == ("resnet9", f"{tmp_path}/nets.py:make")
    assert space_from_content("small", {**content, "network": "hf:a"}).network.name == f"hf:{tmp_path}/a"


def test_networks_of_torchvision_are_not_the_users_code(content):
    check_trust(space_with(content, network={"name": "torchvision:resnet18"}), allow_code=False)


@pytest.mark.parametrize(("folder", "allowed"), [("sets/flowers", True), ("sets/../sets/x", True), ("other", False),
                                                 ("sets/../other", False), ("setsuma", False)])  # fmt: skip
def test_images_are_read_from_the_data_folder_alone(content, tmp_path, folder, allowed):
    space = space_with(content, data={"name": f"folder:{tmp_path / folder}"})
    if allowed:
        check_trust(space, allow_code=False, data_dir=tmp_path / "sets")
        return
    with pytest.raises(InputError, match=r"which is outside the data folder .*; to allow it, name the data"):
        check_trust(space, allow_code=False, data_dir=tmp_path / "sets")


def test_a_link_out_of_the_data_folder_is_outside(content, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "flowers").symlink_to(tmp_path)
    space = space_with(content, data={"name": f"folder:{tmp_path / 'sets' / 'flowers'}"})
    with pytest.raises(InputError, match="outside the data folder"):
        check_trust(space, allow_code=False, data_dir=tmp_path / "sets")


@pytest.mark.parametrize(
    "options", [{"data": "folder:/elsewhere"}, {"set": ("data.name=folder:/elsewhere",)}, {"data_dir": "/elsewhere"}]
)
def test_data_named_on_the_command_line_are_allowed(content, tmp_path, options):
    space = space_with(content, data={"name": "folder:/elsewhere/flowers"})
    if "data_dir" in options:
        options = {"data_dir": tmp_path.__class__(options["data_dir"])}
    check_options(space, RunOptions(**options))
    with pytest.raises(InputError, match="outside the data folder"):
        check_options(space, RunOptions(set=("train.epochs=2",)))


def test_the_option_that_allows_images_can_be_pasted(content):
    space = space_with(content, data={"name": "folder:/elsewhere/my flowers"})
    with pytest.raises(InputError, match=r"name the data yourself: --data 'folder:/elsewhere/my flowers'$"):
        check_options(space, RunOptions(set=("train.epochs=2",)))


def test_a_further_field_of_the_data_is_no_name_of_them(content):
    space = space_with(content, data={"name": "folder:/elsewhere/flowers"})
    with pytest.raises(InputError, match="outside the data folder"):
        check_options(space, RunOptions(set=("data.train_images=200",)))


def test_a_resume_permits_the_images_that_it_names_and_no_others(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = space_with(content, data={"name": f"folder:{tmp_path}/flowers"})
    for named in ("folder:flowers", f"folder:{tmp_path}/flowers"):
        check_options(space, RunOptions(resume="a", data=named))
    for typed in ({}, {"data": "folder:/elsewhere"}, {"data": "digits"}):
        with pytest.raises(InputError, match="outside the data folder"):
            check_options(space, RunOptions(resume="a", **typed))
    assert permission_options(space) == f" --data folder:{tmp_path}/flowers"


def test_what_a_resume_must_repeat_is_code_and_images_outside_the_data_folder(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert permission_options(space_with(content)) == ""
    assert permission_options(space_with(content, data={"name": f"folder:{tmp_path}/data/flowers"})) == ""
    assert permission_options(space_with(content, network={"name": "mine.nets:make"})) == " --allow-code"

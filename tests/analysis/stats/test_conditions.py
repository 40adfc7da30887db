"""Equal with equal: unequal trials are told apart before their errors stand side by side."""

from __future__ import annotations

import pytest

from analysis.__main__ import main
from analysis.stats.conditions import check_equal, differing_fields, mixed_fields, mixed_text
from analysis.stats.front import collect_points
from lowrank.errors import InputError
from sweeps.records.events import Role
from sweeps.records.load import load_study
from tests.support.specifications import change
from tests.support.synthetic_data import study, trial
from tests.support.synthetic_study import Plan, write_study


def fields(*studies):
    return [entry.text() for entry in differing_fields(studies)]


def test_studies_of_other_epochs_differ_and_equal_ones_do_not():
    short, long = study(trial("a", epochs=6)), study(trial("b", epochs=128))
    assert fields(short, long) == ["train.epochs (6; 128)"]
    assert fields(short, study(trial("c", 700, 4.0, method="tucker", epochs=6))) == []


@pytest.mark.parametrize(
    ("section", "value", "field"),
    [
        ("network", {"name": "wrn_10_1"}, "network.name (resnet9; wrn_10_1)"),
        ("train", {"momentum": 0.8}, "train.momentum (none; 0.8)"),
        ("data", {"fingerprint": "beef"}, "data.fingerprint (f00d; beef)"),
    ],
)
def test_other_networks_recipes_and_data_are_differences(section, value, field):
    other = trial("b")
    other.specification = change(other.specification, **{section: value})
    assert fields(study(trial("a")), study(other)) == [field]


def test_a_field_that_a_study_varies_is_no_difference():
    searched = study(trial("a", train__lr=0.1), trial("b", train__lr=0.2))
    assert fields(searched, study(trial("c", train__lr=0.4))) == []
    assert fields(study(trial("a", train__lr=0.1)), study(trial("c", train__lr=0.4))) == ["train.lr (0.1; 0.4)"]


def test_a_thinner_reference_and_an_empty_study_are_no_difference():
    thin = trial("r", width=0.5, role=Role.REFERENCE)
    assert fields(study(trial("a"), thin), study(trial("b")), study()) == []


def test_one_study_is_mixed_only_where_it_was_put_together():
    assert mixed_fields(study(trial("a", train__lr=0.1), trial("b", train__lr=0.2))) == []
    old = study(trial("a", epochs=6), trial("b", epochs=128))
    assert [entry.field for entry in mixed_fields(old)] == ["train.epochs"]
    assert mixed_text(mixed_fields(old)) == (
        "Mixed: the trials differ in train.epochs (128; 6); errors are not like for like."
    )
    assert {point.name.rpartition(", ")[2] for point in collect_points(old)} == {"6 epochs", "128 epochs"}


def test_a_refusal_names_the_fields_and_the_option():
    mixed = differing_fields([study(trial("a", epochs=6)), study(trial("b", epochs=128))])
    with pytest.raises(InputError, match=r"differ in train.epochs \(6; 128\); --mixed puts them together and marks it"):
        check_equal(mixed, allowed=False)
    check_equal(mixed, allowed=True)
    check_equal([], allowed=False)


@pytest.fixture
def studies(tmp_path):
    for name, epochs in (("short", 4), ("long", 8)):
        write_study(tmp_path / name, Plan(name=name, trials=4, epochs=epochs, infeasible=0))
    return tmp_path


def test_collating_other_epochs_needs_an_option_and_marks_the_study(studies, capsys):
    command = ["collate", "short", "long", "--name", "all", "--studies", str(studies)]
    assert main(command) == 2
    assert "differ in train.epochs (4; 8); --mixed" in capsys.readouterr().err
    assert not (studies / "all").exists()
    main([*command, "--mixed"])
    assert "Mixed: the trials differ in train.epochs (4; 8)" in capsys.readouterr().out
    collated = load_study(studies / "all")
    assert [entry.text() for entry in mixed_fields(collated)] == ["train.epochs (4; 8)"]
    assert main(["report", "--study", "all", "--studies", str(studies)]) == 2
    assert "--mixed" in capsys.readouterr().err


def test_comparing_other_epochs_needs_an_option_and_says_so_first(studies, capsys):
    command = ["compare", "short", "long", "--studies", str(studies), "--cost", "epochs"]
    assert main(command) == 2
    assert "differ in train.epochs (4; 8); --mixed" in capsys.readouterr().err
    assert main([*command, "--mixed"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Mixed: the trials differ in train.epochs (4; 8)")
    assert "One search each: without repeated searches there is no interval." in out

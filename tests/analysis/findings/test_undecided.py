"""Which neighbours on the front a study cannot tell apart, and what it would cost to tell."""

from __future__ import annotations

import pytest

from analysis.findings.study_answers.answer import answer_text
from analysis.findings.study_answers.certainty import study_evidence
from analysis.findings.study_answers.undecided import front_neighbours, seeds_to_tell, undecided_sentence
from analysis.stats.front import collect_points
from sweeps.records.events import Role
from sweeps.records.fronts import decidable_difference
from tests.support.specifications import change
from tests.support.synthetic_data import study, trial_of_images

IMAGES = 400


def record(*fronts, **header):
    """A study with a point of each (parameters, wrong images): the first images are wrong."""
    trials = [trial_of_images(f"t{size}", range(wrong), IMAGES, params=size, dims=size // 50) for size, wrong in fronts]
    return study(*trials, data={"val_images": IMAGES}, **header)


def sentence(made):
    return undecided_sentence(made, collect_points(made), study_evidence(made))


def test_a_front_of_one_point_has_no_neighbours():
    assert sentence(record((100, 40))) == ""


def test_neighbours_that_are_far_apart_are_told_apart():
    assert sentence(record((100, 80), (200, 40), (300, 10))) == (
        "All neighbours on the front are beyond noise of each other (corrected for 2 comparisons, not for the choice "
        "of these points)."
    )


def test_those_that_cannot_be_told_apart_are_named_with_what_would_tell():
    made = record((100, 80), (200, 40), (300, 37))
    text = sentence(made)
    assert text.startswith("Of 2 pairs of neighbours on the front 1 cannot be told apart (corrected for 2 comparisons")
    assert "CP, 4 dims (200 parameters) and CP, 6 dims (300), -0.75 points (95 % interval" in text
    assert "`python sweeps/run.py --resume made --repeat-more " in text
    assert "--data" not in text
    assert "if seeds do not differ" in text  # no setting has two
    assert text in answer_text(made, collect_points(made))


def test_the_number_of_seeds_is_the_smallest_that_decides():
    made = record((100, 40), (200, 37))
    evidence = study_evidence(made)
    (pair,) = front_neighbours(collect_points(made), evidence)
    assert pair.discordance == pytest.approx(3 / 38.5)
    more = seeds_to_tell(pair, evidence)

    def decides(seeds):
        return decidable_difference(IMAGES, seeds, 100 * 38.5 / IMAGES, None, pair.discordance) <= 0.75

    assert decides(1 + more)
    assert not decides(more)


def test_the_command_names_images_that_lie_outside_the_data_folder():
    """It would be refused without: records must not choose what is read."""
    made = record((100, 80), (200, 40), (300, 37))
    for trial in made.trials.values():
        trial.specification = change(trial.specification, data={"name": "csv:/elsewhere/my labels.csv"})
    assert " --data 'csv:/elsewhere/my labels.csv'`" in sentence(made)


def test_what_no_number_of_seeds_tells_is_said():
    made = record((100, 40), (200, 39))
    made.trials["t200"] = trial_of_images(
        "t200", range(200, 239), IMAGES, params=200, dims=4
    )  # other images altogether
    assert "20 more seeds on these 400 images would not tell them apart" in sentence(made)


def test_the_cost_is_that_of_one_more_seed_of_each_point_of_the_front():
    made = record((100, 40), (200, 37))
    for trial in made.trials.values():
        trial.epochs[1]["epoch_seconds"] = 7200.0
        trial.attempts = [{"time": 0.0, "device": "H200", "gpus": 0.5, "start_seconds": 0.0}]
    (pair,) = front_neighbours(collect_points(made), study_evidence(made))
    more = seeds_to_tell(pair, study_evidence(made))
    assert f"--repeat-more {more}`, {2 * more} trainings, about {2 * more:.2g} card hours" in sentence(made)


def test_of_a_grid_every_setting_is_repeated():
    made = record((100, 40), (200, 37), (250, 90), space={"search": {"sampler": "grid"}})
    (pair,) = front_neighbours(collect_points(made), study_evidence(made))
    assert f"{3 * seeds_to_tell(pair, study_evidence(made))} trainings" in sentence(made)


def test_several_seeds_count_with_their_deviation():
    made = record((100, 40), (200, 37))
    for size, wrong in ((100, range(5, 50)), (200, range(5, 30))):
        seed = trial_of_images(f"r{size}", wrong, IMAGES, params=size, dims=size // 50, seed=1)
        seed.role = Role.REPEAT
        made.trials[seed.trial_id] = seed
    text = sentence(made)
    assert "if seeds do not differ" not in text
    assert study_evidence(made).seeds.freedom == 2

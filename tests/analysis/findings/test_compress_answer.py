"""What a study that begins with a trained network says: shares in words, differences with intervals, epochs in all."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.findings.study_answers.answer import answer_text
from analysis.findings.study_answers.compress_answer import compress_paragraphs, compressed_sizes
from analysis.stats.front import collect_points
from analysis.stats.inference.intervals import Z_95, newcombe_interval
from analysis.stats.inference.paired import paired_error_difference, tango_interval
from sweeps.records.events import Role, Status
from sweeps.records.header import StudyHeader
from sweeps.records.image_errors import encode_wrong_images
from sweeps.records.model import StudyRecord, TrialRecord
from tests.support.specifications import make_specification

DENSE = 400_000
BUDGETS = {"params <= 0.25 of dense": 100_000, "params <= 0.5 of dense": 200_000}


def record(
    name: str, params: int, error: float, *, stratum: str = "reference", before: float | None = None, epochs: int = 3,
    start: str | None = "in_order", seed: int = 0,
) -> TrialRecord:  # fmt: skip
    how = {} if start == "dense" else {"how": start}
    section = {} if start is None else {"start": {"from": "dense.pt", "fingerprint": "f", "epochs": 20, **how}}
    return TrialRecord(
        trial_id=f"{name}{params}{seed}", role=Role.REFERENCE if stratum == "reference" else Role.SEARCH,
        stratum=stratum, status=Status.COMPLETED, parameters={"method.name": name}, point_id=f"{name}{params}",
        specification=make_specification(method={"name": name}, train={"epochs": epochs}, seed=seed, **section),
        counts={"params": params, "mult_adds": 10 * params, "dense_params": DENSE, "separable_params": 50_000},
        epochs={epoch: {"val_error": error} for epoch in range(1, epochs + 1)},
        initial={} if start is None else {"val_error": error if before is None else before, "val_loss": 1.0},
    )  # fmt: skip


def study(*trials: TrialRecord) -> StudyRecord:
    strata = [{"label": label, "params": params} for label, params in BUDGETS.items()]
    header = {"name": "small", "strata": strata, "data": {"val_images": 1000}, "network": {"width": 1.0}}
    return StudyRecord(header=StudyHeader.parse(header), trials={trial.trial_id: trial for trial in trials})


HALF, QUARTER = reversed(BUDGETS)
TRIALS = (
    record("unchanged", DENSE, 2.0, epochs=0), record("dense", DENSE, 1.9, start="dense"),
    record("separable", 50_000, 6.0, before=80.0, start="dense"),
    record("thin_dense", 199_000, 3.5, epochs=23, start=None), record("thin_dense", 99_000, 5.0, epochs=8, start=None),
    record("tucker2", 198_000, 2.2, stratum=HALF, before=2.6), record("svd", 199_000, 2.5, stratum=HALF, before=2.4),
    record("tucker2", 98_000, 3.0, stratum=QUARTER, before=9.0),
)  # fmt: skip


def test_sizes_are_told_in_words_with_differences_before_and_after():
    small = study(*TRIALS)
    answer, first, half, quarter = compress_paragraphs(small, collect_points(small))
    assert answer.startswith(
        "Against the trained network (2.00 % validation error), in points: half the parameters +0.20 (corrected for "
        "the choice +0.47, 95 % interval "
    )
    assert "within noise) by Tucker-2, +0.40 before any training; a quarter +1.00 (95 % interval " in answer
    assert answer.endswith(
        "by Tucker-2, +7.00 before any training; a thinner network from scratch "
        "has 3.50 % with at most half the parameters and 5.00 % with at most a quarter."
    )
    assert first.startswith("The trained network as it is: 2.00 % at 400,000 parameters (20 epochs). Trained further ")
    assert "Trained further (3 epochs, 23 in all): -0.10 points (95 % interval " in first
    assert "Separable, begun at it and trained further (3 epochs, 23 in all): +4.00 points (95 % interval " in first
    assert half.startswith(
        "Half the parameters (198,000) at +0.20 points (corrected for the choice +0.47, 95 % interval"
    )
    assert "Tucker-2, fitted in order (3 epochs, 23 in all), 2.20 %, best of 3." in half
    assert "Before any training the lowest is +0.40 points, as measured: SVD, fitted in order." in half
    assert quarter.startswith("A quarter (98,000) at +1.00 points")
    assert quarter.count("best of") == 0  # nothing was chosen


def test_a_budget_is_told_once_and_other_networks_are_compared_in_its_paragraph():
    small = study(*TRIALS)
    text = answer_text(small, collect_points(small))
    (half,) = [line for line in text.splitlines() if line.startswith("Half the parameters (198,000)")]
    assert "At up to 200,000" not in text
    assert "hin dense within the same budget: 3.50 % at 199,000, 1.30 points higher" in half  # 23 epochs, as it
    assert "hin dense within the same budget: 5.00 % at 99,000 (8 epochs in all), 2.00 points higher" in text
    assert "separable reference" not in text  # the first paragraph compares it with the trained network
    assert "All searched networks have in common: fitted in order." in text.splitlines()
    assert "Tucker-2 (3 epochs" in half
    assert "(Holm), 4 with the trained network and 3 with others." in text


def test_what_is_as_good_as_the_trained_network_is_said_at_its_margin():
    sure = study(
        with_images(record("unchanged", DENSE, 20.0, epochs=0), range(200)),
        with_images(record("tucker2", 198_000, 20.1, stratum=HALF), range(201)),
        with_images(record("svd", 98_000, 30.0, stratum=QUARTER), range(300)),
    )
    lines = answer_text(sure, collect_points(sure)).splitlines()
    assert lines[2].startswith(
        "The smallest network that is as good as the trained network (20.0 % at 400,000 parameters) is Tucker-2 "
    )
    assert "not more than 1 point worse (95 %" in lines[2]


def test_a_larger_budget_without_a_better_network_names_none():
    small = study(TRIALS[0], record("tucker2", 98_000, 3.0, stratum=QUARTER), record("svd", 199_000, 3.5, stratum=HALF))
    half = compress_paragraphs(small, collect_points(small))[2]
    assert half == "Half the parameters: no network is better than that of the smaller budget, best of 2."
    assert "half" not in compress_paragraphs(small, collect_points(small))[0]  # nor does the first sentence
    small = study(TRIALS[0], record("tucker2", 98_000, 3.0, stratum=QUARTER))
    half = compress_paragraphs(small, collect_points(small))[2]
    assert half == "Half the parameters: no trial above the smaller budget was completed."


def test_before_any_training_no_network_is_taught():
    taught = record("svd", 197_000, 2.4, stratum=HALF, before=2.1)
    taught.specification = make_specification(
        method={"name": "svd"}, train={"epochs": 3}, teacher={"name": "itself", "weights": "f00d"},
        start={"from": "dense.pt", "fingerprint": "f", "epochs": 20, "how": "in_order"},
    )  # fmt: skip
    small = study(*TRIALS, taught)
    points = collect_points(small)
    assert "SVD, taught by the trained network, fitted in order" in {point.name for point in points}
    half = compress_paragraphs(small, points)[2]
    assert "Before any training the lowest is +0.10 points, as measured: SVD, fitted in order." in half


def test_with_several_seeds_the_interval_is_over_them():
    seeds = [record("tucker2", 198_000, error, stratum=HALF, seed=seed) for seed, error in enumerate((2.2, 2.4, 2.6))]
    small = study(record("unchanged", DENSE, 2.0, epochs=0), *seeds)
    half = compress_paragraphs(small, collect_points(small))[2]
    assert half.startswith("Half the parameters (198,000) at +0.40 points (95 % interval -0.10 to +0.90, over 3 seeds,")


def with_images(trial: TrialRecord, wrong: range) -> TrialRecord:
    """The trial of those wrong images of 1000, which give its error."""
    bits = np.isin(np.arange(1000), wrong)
    assert 100 * bits.mean() == pytest.approx(trial.val_error)
    trial.wrong_images = {"val": encode_wrong_images(bits)}
    return trial


def test_networks_are_compared_on_the_same_images_where_these_are_on_record():
    small = study(
        with_images(record("unchanged", DENSE, 2.0, epochs=0), range(20)),
        with_images(record("dense", DENSE, 1.9, start="dense"), range(19)),
        with_images(record("tucker2", 198_000, 2.8, stratum=HALF), range(28)),
    )
    _, first, half, _ = compress_paragraphs(small, collect_points(small))
    low, high = tango_interval(8, 0, 1000, Z_95)
    assert f"at +0.80 points (95 % interval {low:+.2f} to {high:+.2f}, same images, beyond noise)" in half
    assert low > 0 > newcombe_interval(2.8, 2.0, 1000)[0]
    low, high = tango_interval(0, 1, 1000, Z_95)  # a reference too
    assert f"-0.10 points (95 % interval {low:+.2f} to {high:+.2f}, same images, within noise)" in first
    assert "Differences are on the same validation images, with 95 % intervals" in first
    assert first.endswith("corrected for the number of comparisons in this part, 2 (Holm).")


def test_the_trained_network_is_the_same_for_each_seed_and_adds_no_variance():
    """With one repeated setting the variance between seeds is that of its own differences to the trained network."""
    wrong = [range(28), range(2, 34), range(4, 28)]
    seeds = [
        with_images(record("tucker2", 198_000, len(images) / 10, stratum=HALF, seed=seed), images)
        for seed, images in enumerate(wrong)
    ]
    small = study(with_images(record("unchanged", DENSE, 2.0, epochs=0), range(20)), *seeds)
    half = compress_paragraphs(small, collect_points(small))[2]
    bits, base = np.array([np.isin(np.arange(1000), images) for images in wrong]), np.arange(1000) < 20
    paired = paired_error_difference(bits, np.tile(base, (3, 1)))
    assert half.startswith(
        f"Half the parameters (198,000) at +0.80 points (95 % interval {paired.low:+.2f} to {paired.high:+.2f}, same "
        "images, 3 seeds, within noise)"
    )


def test_a_study_without_wrong_images_says_that_differences_are_unpaired():
    small = study(*TRIALS)
    first = compress_paragraphs(small, collect_points(small))[1]
    assert "Differences are not paired by image: the records do not say which images were wrong." in first
    assert "same images" not in " ".join(compress_paragraphs(small, collect_points(small)))


def test_the_answer_begins_with_it_and_other_studies_do_not_have_it():
    small = study(*TRIALS)
    points = collect_points(small)
    assert answer_text(small, points).startswith("Against the trained network (2.00 % validation error), in points: ")
    others = study(*(trial for trial in TRIALS if trial.method != "unchanged"))
    assert compress_paragraphs(others, collect_points(others)) == []
    assert compressed_sizes(others, collect_points(others)) == []


def test_a_budget_without_a_result_says_so():
    small = study(*TRIALS[:-1])
    assert compress_paragraphs(small, collect_points(small))[-1] == "Params <= 0.25 of dense: no trial was completed."


@pytest.mark.parametrize(("field", "value"), [("initial_error", 9.0), ("total_epochs", 23), ("start", "in_order")])
def test_points_say_how_they_started(field, value):
    points = collect_points(study(*TRIALS))
    assert getattr(next(point for point in points if point.params == 98_000), field) == value


def test_trainings_that_end_above_their_start_are_named():
    worse = record("svd", 97_000, 44.5, stratum=QUARTER, before=30.5)
    small = study(*TRIALS, worse, record("tucker2", 97_500, 9.5, stratum=QUARTER, before=9.0))
    assert compress_paragraphs(small, collect_points(small))[-1] == (
        "1 of 7 trainings ended more than 1 point above the error that they began with, SVD at 97,000 parameters by "
        "the most (30.5 % before, 44.5 % after): a lower `train.lr` may mend that, or "
        "`train.optimizer: adamw` where there are no batch norms, or images as the network was trained on "
        "(`train.shift`, `train.flip`, `train.cutout`)."
    )

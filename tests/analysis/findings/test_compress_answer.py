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
    record("thin_dense", 199_000, 3.5, epochs=23, start=None), record("thin_dense", 99_000, 5.0, epochs=23, start=None),
    record("tucker2", 198_000, 2.2, stratum=HALF, before=2.6), record("svd", 199_000, 2.5, stratum=HALF, before=2.4),
    record("tucker2", 98_000, 3.0, stratum=QUARTER, before=9.0),
)  # fmt: skip


def test_sizes_are_told_in_words_with_differences_before_and_after():
    small = study(*TRIALS)
    first, half, quarter = compress_paragraphs(small, collect_points(small))
    assert first.startswith("The trained network as it is: 2.00 % at 400,000 parameters (20 epochs). Trained on ")
    assert "Trained on (3 epochs, 23 in all): -0.10 points (95 % interval " in first
    assert "Separable, started from it and trained on (3 epochs, 23 in all): +4.00 points (95 % interval " in first
    assert half.startswith(
        "Half the parameters (198,000) at +0.20 points (corrected for the choice +0.48, 95 % interval"
    )
    assert "Tucker-2, fitted in order (3 epochs, 23 in all), best of 2." in half
    assert "Before any training the lowest is +0.40 points, as measured: SVD, fitted in order." in half
    assert "Within the same size a thinner network from scratch has 3.50 % at 199,000 (23 epochs in all)" in half
    assert "that of the compressed one is 1.30 points lower (corrected for the choice +0.99, 95 % interval" in half
    assert "within noise" in half
    assert quarter.startswith("A quarter (98,000) at +1.00 points")
    assert "5.00 % at 99,000" in quarter  # the larger thin network does not fit


def test_with_several_seeds_the_interval_is_over_them():
    seeds = [record("tucker2", 198_000, error, stratum=HALF, seed=seed) for seed, error in enumerate((2.2, 2.4, 2.6))]
    small = study(record("unchanged", DENSE, 2.0, epochs=0), *seeds)
    half = compress_paragraphs(small, collect_points(small))[1]
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
        with_images(record("tucker2", 198_000, 2.8, stratum=HALF), range(28)),
        with_images(record("thin_dense", 199_000, 3.5, epochs=23, start=None), range(35)),
    )
    first, half, _ = compress_paragraphs(small, collect_points(small))
    low, high = tango_interval(8, 0, 1000, Z_95)
    assert f"at +0.80 points (95 % interval {low:+.2f} to {high:+.2f}, same images, beyond noise)" in half
    assert low > 0 > newcombe_interval(2.8, 2.0, 1000)[0]
    low, high = tango_interval(7, 0, 1000, Z_95)
    assert f"0.70 points lower (95 % interval {low:+.2f} to {high:+.2f}, same images, beyond noise)" in half
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
    half = compress_paragraphs(small, collect_points(small))[1]
    bits, base = np.array([np.isin(np.arange(1000), images) for images in wrong]), np.arange(1000) < 20
    paired = paired_error_difference(bits, np.tile(base, (3, 1)))
    assert half.startswith(
        f"Half the parameters (198,000) at +0.80 points (95 % interval {paired.low:+.2f} to {paired.high:+.2f}, same "
        "images, 3 seeds, within noise)"
    )


def test_a_study_without_wrong_images_says_that_differences_are_unpaired():
    small = study(*TRIALS)
    first = compress_paragraphs(small, collect_points(small))[0]
    assert "Differences are not paired by image: the records do not say which images were wrong." in first
    assert "same images" not in " ".join(compress_paragraphs(small, collect_points(small)))


def test_the_answer_begins_with_it_and_other_studies_do_not_have_it():
    small = study(*TRIALS)
    points = collect_points(small)
    assert answer_text(small, points).startswith("The trained network as it is")
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
        "the most (30.5 % before, 44.5 % after): a lower `train.lr` may mend that."
    )

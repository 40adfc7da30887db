"""The report's tables of variational layers: what is left, by layer, by epoch, and the histograms."""

from __future__ import annotations

from analysis.reporting.tables import (
    posterior_epochs_table,
    posterior_layers_table,
    removed_layers_table,
    removed_table,
)
from sweeps.records.events import Status
from sweeps.records.model import StudyRecord, TrialRecord
from tests.support.specifications import make_specification

METRICS = {
    "val_error": 5.0, "full_val_error": 4.0, "loss_cross_entropy": 0.2, "loss_kl": 3.0, "kl_weight": 1.0,
    "sparsity": 0.5, "compression": 7.0, "kl.hidden.0": 12.5, "alive.hidden.0": 20.0, "snr.hidden.0.-1": 0.25,
    "snr.hidden.0.inf": 0.75,
}  # fmt: skip
REMOVED = {
    "network": {"name": "mlp", "hidden": [12, 9], "inputs": 20}, "threshold": 0.5, "masked": False,
    "counts": {"params": 448, "bytes": 2000, "mixed_bytes": 700}, "alive": {"hidden.0": [20, 64]},
    "bits": {"hidden.0": 9}, "mixed_error": 5.5,
}  # fmt: skip


def study() -> StudyRecord:
    specification = make_specification(method={"name": "bayesian", "prior": "normal_jeffreys"})
    trials = [
        TrialRecord(
            trial_id=name, status=Status.COMPLETED, specification=specification, removed=removed,
            counts={"params": 448, "dense_params": 4480, "bytes": 2000, "mixed_bytes": 700},
            epochs={number: {**METRICS, "loss_kl": 4.0 - number} for number in (1, 2)},
        )
        for name, removed in (("a1", REMOVED), ("b2", {}))
    ]  # fmt: skip
    return StudyRecord(trials={trial.trial_id: trial for trial in trials})


def test_only_trials_that_lost_groups_are_listed() -> None:
    table = removed_table(study())
    assert [row[0] for row in table.rows] == ["a1"]
    assert table.texts[0] == (
        "a1", "normal-jeffreys", "448", "10.0%", "2,000", "700", "0.50", "4.00 %", "5.00 %", "5.50 %", "removed"
    )  # fmt: skip


def test_layers_have_their_groups_bits_and_divergence() -> None:
    table = removed_layers_table(study())
    assert table.texts == (("normal-jeffreys, 448", "hidden.0", "20 of 64", "9", "12"),)


def test_epochs_and_histograms_are_listed() -> None:
    epochs = posterior_epochs_table(study())
    assert len(epochs.rows) == 2
    assert [text[:4] for text in epochs.texts] == [
        ("normal-jeffreys", "1", "0.2", "3"), ("normal-jeffreys", "2", "0.2", "2")
    ]  # fmt: skip
    layers = posterior_layers_table(study())
    assert layers.texts == (("normal-jeffreys", "hidden.0", "25", "75"),)
    assert layers.headings[2:] == ("< 10^-1", "above")
    assert {row[2] for row in layers.rows} == {name for name in METRICS if "hidden" in name}

"""The audit of early stopping: rules replayed on whole curves, in the order in which they came in."""

from __future__ import annotations

from analysis.__main__ import main
from analysis.findings.stopping_audit import DEFAULTS, audit_stopping, audit_text
from sweeps.records.events import Role, Status
from sweeps.records.header import StudyHeader
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.space.settings import SearchSettings


def trial(name: str, errors: list[float], start: float, status: Status = Status.COMPLETED, **more) -> TrialRecord:
    epochs = {epoch: {"val_error": error, "time": start + epoch} for epoch, error in enumerate(errors, start=1)}
    return TrialRecord(name, stratum="small", status=status, epochs=epochs, counts={"params": 1}, **more)


def study(*trials: TrialRecord) -> StudyRecord:
    header = StudyHeader(name="s", space={"search": {"grace": 0.5}})
    return StudyRecord(header, {each.trial_id: each for each in trials})


EARLY = [trial(f"early{number}", [9.0 + number, 8.0, 7.0, 6.0 + number], 10.0 * number) for number in range(4)]


def test_a_late_bloomer_would_have_been_stopped():
    late = trial("late", [50.0, 40.0, 20.0, 1.0], 100.0)
    verdicts = {verdict.rule: verdict for verdict in audit_stopping(study(*EARLY, late))}
    assert set(verdicts) == {"asha", "median", "hyperband"}
    for rule in ("asha", "median"):
        assert (verdicts[rule].winner, verdicts[rule].stopped_at) == ("late", 2)
        assert verdicts[rule].kept_error == 6.0
        assert (
            "THE WINNER (late, 1.00 %) would have been stopped at epoch 2; the best one kept has 5.00 points more"
            in (verdicts[rule].text())
        )


def test_a_steady_winner_is_kept_and_epochs_are_saved():
    steady, bad = trial("steady", [5.0, 4.0, 3.0, 2.0], 90.0), trial("bad", [60.0, 60.0, 60.0, 60.0], 100.0)
    (asha,) = (verdict for verdict in audit_stopping(study(*EARLY, steady, bad)) if verdict.rule == "asha")
    assert asha.stopped_at is None
    assert asha.stopped >= 1
    assert 0 < asha.saved < 1
    assert asha.text().startswith("asha, small: the winner would have been kept (")


def test_what_has_no_whole_curve_is_left_out_and_said():
    cut = trial("cut", [50.0], 0.0, Status.STOPPED)
    reference = trial("dense", [1.0] * 4, 0.0, role=Role.REFERENCE)
    text = audit_text(study(*EARLY, cut, reference))
    assert "left out, without a whole curve: 1 trial stopped when the study ran" in text
    assert "dense" not in text
    assert audit_text(study(cut)).startswith("left out, without a whole curve: 1 trial ")
    assert audit_text(study()) == "nothing to audit: no stratum has two trials that trained to their end"


def test_the_command(tmp_path, capsys):
    from tests.support.synthetic_study import Plan, write_study

    folder = write_study(tmp_path, Plan(trials=16))
    assert main(["audit", str(folder)]) == 0
    assert "asha, " in capsys.readouterr().out
    assert main(["audit", "nothing", "--studies", str(tmp_path)]) == 2


def test_the_defaults_are_those_of_a_space():
    assert {name: SearchSettings.model_fields[name].default for name in DEFAULTS} == DEFAULTS

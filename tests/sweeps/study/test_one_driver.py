"""A study has one driver: a second one is refused, and one that has lost the study ends with a line."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import pytest
import yaml

from lowrank.data import load_data
from lowrank.errors import InputError
from lowrank.utils.cli import ExitCode
from sweeps import run
from sweeps.records.events import Event
from sweeps.records.journal import Journal, StudyLostError
from sweeps.records.load import fold_journal
from sweeps.records.names import JOURNAL_FILE
from sweeps.records.study_folders import hold_study_folder, write_space_file
from sweeps.space import StoredOptions
from sweeps.space.parse import parse_space
from sweeps.study import driver, start
from sweeps.trials import Resolver
from tests.support.journals import read_events

TINY = ("--space", "tt_dims", "--data", "digits", "--set", "network.width=0.125", "--trials", "1")


def config(folder, **fields):
    names = ("data_dir", "tracking_uri", "teachers", "cache_dir", "storage", "origin")
    return SimpleNamespace(name=folder.name, folder=folder, **{**dict.fromkeys(names), "resumed": False, **fields})


def test_a_driver_that_lost_its_study_says_so_and_has_its_own_exit_code(monkeypatch, capsys, tmp_path):
    def lost(options):
        raise StudyLostError("the driver on elsewhere has taken 'mine' over")

    monkeypatch.setattr(run, "dispatch", lost)
    assert run.main(["--resume", "mine", "--out", str(tmp_path)]) == ExitCode.STUDY_LOST == 6
    error = capsys.readouterr().err
    assert error.startswith("error: the driver on elsewhere has taken 'mine' over; its trials were stopped")
    assert error.count("\n") == 1


@pytest.mark.parametrize("resumed", [False, True])
def test_a_new_study_must_find_no_journal(tmp_path, resumed):
    (tmp_path / JOURNAL_FILE).write_text("")
    check = lambda: driver._check_journal(tmp_path / JOURNAL_FILE, config(tmp_path, resumed=resumed))  # noqa: E731
    if resumed:
        check()
        return
    with pytest.raises(InputError, match="has got a journal while this study was being prepared; give this one anothe"):
        check()


def test_a_study_has_its_folder_before_anything_that_takes_long(monkeypatch, tmp_path, capsys):
    """Two commands of one name: the second is refused while the first still loads its data."""
    seen = []

    def loads(settings, data_dir):
        seen.append([path.name for path in tmp_path.iterdir()])
        if len(seen) == 1:
            assert run.main([*TINY, "--out", str(tmp_path), "--name", "same"]) == 2
        raise InputError("no such data")

    monkeypatch.setattr(start, "load_data", loads)
    assert run.main([*TINY, "--out", str(tmp_path), "--name", "same"]) == 2
    second, first = capsys.readouterr().err.splitlines()
    assert second == "error: the study 'same' is being run by another process"
    assert first == "error: no such data"
    assert seen == [["same"]]
    assert list(tmp_path.iterdir()) == []


def test_a_resume_of_a_running_study_is_refused_before_anything_is_fetched(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_space_file(folder, {"question": "Which?"}, StoredOptions(space="small", data_dir=None, tracking_uri=None))
    monkeypatch.setattr(start, "_resume", lambda *arguments: pytest.fail("it was begun"))
    with hold_study_folder(folder):
        assert run.main(["--resume", "mine", "--out", str(tmp_path)]) == 2
    assert "the study 'mine' is being run by another process" in capsys.readouterr().err


def test_the_records_are_closed_and_stored_before_the_process_is_ended(tmp_path):
    with closing(Journal(tmp_path / JOURNAL_FILE)) as journal:
        mirror = SimpleNamespace(finish=lambda: f"{len(list(read_events(journal.path)))} lines stored")
        assert driver._close_records(journal, mirror) == "1 lines stored"
        journal._lock.release()  # it was frozen
    (event,) = read_events(tmp_path / JOURNAL_FILE)
    assert (event["event"], event["reason"]) == (Event.CLOSED, "interrupted")


def test_the_records_of_a_lost_study_are_not_closed(tmp_path):
    with closing(Journal(tmp_path / JOURNAL_FILE)) as journal:
        journal.refuse(StudyLostError("taken over"))
        assert driver._close_records(journal, None) == "taken over"
    assert list(read_events(tmp_path / JOURNAL_FILE)) == []


def test_folders_of_earlier_studies_are_written_as_absolute_paths(tmp_path, content, monkeypatch):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / JOURNAL_FILE).write_text("")
    monkeypatch.chdir(tmp_path)
    content["search"]["warm_start"] = ["earlier"]
    space = parse_space("small", content)
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    driver._write_space(space, config(folder))
    written = yaml.safe_load((folder / "space.yaml").read_text())
    assert written["search"]["warm_start"] == [str(tmp_path / "earlier")]
    assert space.source["search"]["warm_start"] == ["earlier"]  # what the journal says stays as it was typed


def test_a_resume_with_changed_code_is_said_and_on_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "network_of_a_driver_test.py"
    module.write_text(
        "from lowrank.networks.resnet9 import ResNet9\n\n\n"
        "def small(image_shape, classes):\n    return ResNet9(image_shape[0], classes, width=0.125)\n"
    )
    space = parse_space("mine", {
        "question": "q", "network": "network_of_a_driver_test:small", "method": {"name": "separable"},
        "train": {"epochs": 1}, "search": {"sampler": "grid", "trials": 1},
    })  # fmt: skip
    resolver, path = Resolver(space, load_data(space.data)), tmp_path / JOURNAL_FILE
    for change in ("", "# another network\n", ""):
        module.write_text(module.read_text() + change)
        with closing(Journal(path)) as journal:
            driver._write_header(journal, fold_journal(path), space, resolver, config(tmp_path), {})
    line = "resumed with other code than before: the code of network_of_a_driver_test has changed"
    assert capsys.readouterr().out == f"{line}\n"
    assert fold_journal(path).notes == [line]

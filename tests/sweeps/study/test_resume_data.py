"""A resumed study goes on with the images that it began with, or says that they are others."""

from __future__ import annotations

from sweeps.records import JOURNAL_FILE, Event, Journal, write_space_file
from sweeps.run import main
from sweeps.space import StoredOptions, read_space


def test_other_images_under_the_same_name_are_refused_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    space = read_space("tt_dims", ["network.width=0.125", "data.train_images=200"])
    write_space_file(folder, space.source, StoredOptions(space="tt_dims", data_dir=None, tracking_uri=None))
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, name="mine", data={"name": "digits", "fingerprint": "of other images"})
    journal.close()
    before = (folder / JOURNAL_FILE).read_bytes()
    assert main(["--resume", "mine", "--out", str(tmp_path / "studies")]) == 2
    error = capsys.readouterr().err
    assert "digits has the fingerprint " in error
    assert ", but the study began with of other images: its images, labels or classes have changed; bring" in error
    assert error.count("\n") == 1
    assert (folder / JOURNAL_FILE).read_bytes() == before

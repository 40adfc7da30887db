from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from analysis.stats.front import collect_points
from lowrank.errors import InputError
from sweeps.records.load import find_study, list_studies, load_study
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, RESULTS_FILE
from sweeps.records.tables import epochs_to_table, results_to_table
from tests.support.synthetic_study import write_study


class TestLoad:
    def test_the_tables_alone_tell_the_same_trials(self, tmp_path):
        study = load_study(write_study(tmp_path / "a"))
        (tmp_path / "b").mkdir()
        pq.write_table(results_to_table(study), tmp_path / "b" / RESULTS_FILE)
        without_epochs = load_study(tmp_path / "b")
        assert collect_points(without_epochs) == collect_points(study)
        pq.write_table(epochs_to_table(study), tmp_path / "b" / EPOCHS_FILE)
        again = load_study(tmp_path / "b")
        assert collect_points(again) == collect_points(study)
        assert again.name == study.name
        assert again == study

    def test_found_by_name_or_folder(self, tmp_path):
        write_study(tmp_path / "mine")
        (tmp_path / "no study").mkdir()
        assert list_studies(tmp_path) == ["mine"]
        assert find_study("mine", tmp_path) == find_study(str(tmp_path / "mine")) == tmp_path / "mine"
        with pytest.raises(InputError, match="unknown study 'yours'; choose from: mine"):
            find_study("yours", tmp_path)
        assert list_studies(tmp_path / "nowhere") == []

    @pytest.mark.parametrize(("content", "message"), [("", "has none yet"), ("{]\n", "is damaged")])
    def test_a_journal_that_tells_nothing(self, tmp_path, content, message):
        (tmp_path / JOURNAL_FILE).write_text(content)
        with pytest.raises(InputError, match=message):
            load_study(tmp_path)

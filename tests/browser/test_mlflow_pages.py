"""MLflow's interface in a real browser, over a finished study: each page shows what the README says of it."""

from __future__ import annotations

import pytest

from sweeps.tracking.follower import Follower, catch_up
from sweeps.tracking.mlflow_store import quiet_mlflow
from sweeps.tracking.uri import default_tracking_uri
from tests.browser.mlflow_pages import take_pictures
from tests.support.report_pictures import missing_browser
from tests.support.synthetic_study import Plan, write_study

LARGEST = 200_000  # bytes of a picture that is kept


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")
@pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")
def test_every_page_shows_the_study(tmp_path):
    quiet_mlflow()
    study = write_study(tmp_path / "tt_dims", Plan(trials=12, epochs=4, endings=False))
    assert catch_up(Follower(study, default_tracking_uri(study))) is None
    take_pictures(study, tmp_path / "pictures", models=False)  # which no synthetic study has
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [
        "mlflow_compare.png", "mlflow_epochs.png", "mlflow_parallel.png", "mlflow_runs.png",
    ]  # fmt: skip
    assert all(5_000 < path.stat().st_size < LARGEST for path in pictures)

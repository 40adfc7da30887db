"""The pictures of the pages are made by one command, and the figures beside them agree with the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import check_results
from docs.make_pictures import GROUPS, main
from lowrank.errors import InputError
from tests.support.pages import PAGES, ROOT
from tests.support.report_pictures import missing_browser
from tests.test_docs import LINK

MADE = {ROOT / "docs" / group.folder / f"{name}.png" for group in GROUPS.values() for name in group.names}
DRAWN = ("front", "compress", "printed", "schedule", "log")


def test_the_command_makes_every_picture_that_a_page_shows() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in LINK.findall(page.read_text())
        if target.endswith(".png")
    }
    assert shown == MADE
    kept = {*(ROOT / "docs" / "pictures").iterdir(), *(ROOT / "docs" / "results" / "research_log_pictures").iterdir()}
    assert kept == MADE


def test_a_front_is_drawn_from_a_printed_table(tmp_path: Path) -> None:
    assert main(["printed", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "pictures" / "front_cifar10_h200.png").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["other"], "a group must be one of front, .* but got other"), (["mlflow"], "must be a folder .* but got None")],
)
def test_wrong_input_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(arguments)


@pytest.mark.slow
@pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")
def test_kept_records_give_the_pictures(tmp_path: Path) -> None:
    assert main([*DRAWN, "report", "--out", str(tmp_path)]) == 0
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    expected = {GROUPS[group].folder / f"{name}.png" for group in (*DRAWN, "report") for name in GROUPS[group].names}
    assert made == expected


def test_a_wrong_figure_of_a_page_is_named() -> None:
    study = check_results.read_study(check_results.DIGITS)
    page = (check_results.RESULTS / "digits_tt_dims.md").read_text()
    readme = (ROOT / "README.md").read_text()
    assert list(check_results.compare_digits(study, page, readme)) == []
    wrong = list(
        check_results.compare_digits(study, page.replace("14.93", "14.39"), readme.replace("59,450", "59,540"))
    )
    assert any("('44,488', '14.93', 'stopped early')" in statement for statement in wrong)
    assert any("A tensor train of 59,450 parameters" in statement for statement in wrong)


def test_a_wrong_error_of_a_compressed_network_is_named() -> None:
    study = check_results.read_study(check_results.COMPRESS)
    page = (check_results.RESULTS / "h200_compress_space.md").read_text()
    assert list(check_results.compare_compressed(study, page)) == []
    (missing, *_) = check_results.compare_compressed(study, page.replace("| 12.33 |", "| 12.83 |"))
    assert "12.33" in missing

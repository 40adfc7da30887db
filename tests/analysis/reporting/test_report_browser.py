"""A report as a reader meets it: in a real browser, on a screen and on a phone, in the light and in the dark."""

from __future__ import annotations

import pytest

from analysis.reporting.write import write_report
from sweeps.records.load import load_study
from tests.support.report_pictures import PHONE, WIDE, missing_browser, opened
from tests.support.synthetic_study import Plan, write_study

pytestmark = pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study"), Plan(trials=12, epochs=3))
    return write_report(load_study(folder), folder / "report", folder)


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_nothing_hangs_over_and_nothing_is_fetched(page, width, scheme):
    with opened(page, width, scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.requests == [page.resolve().as_uri()]
        ground, ink = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        assert (lightness(ground) > lightness(ink)) is (scheme == "light")
        shown = [kind for kind in ("wide", "narrow") if tab.locator(f"figure .{kind}").first.is_visible()]
        assert shown == (["wide"] if width == WIDE else ["narrow"])


def test_how_the_study_came_about_opens_on_request(page):
    with opened(page, WIDE, "light") as tab:
        facts = tab.locator("dl")
        assert not facts.is_visible()
        tab.locator("summary").first.click()
        assert facts.is_visible()
        assert "python sweeps/run.py --space tt_dims" in facts.inner_text()
        assert "digits, fingerprint f00d" in facts.inner_text()
        assert "1,077 training, 360 validation, 360 test, 10 classes" in facts.inner_text()


def lightness(colour: str) -> int:
    """Of `rgb(r, g, b)`, 0 to 765."""
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

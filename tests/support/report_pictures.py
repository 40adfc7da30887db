"""Opens a report in a real browser and takes its pictures: python -m tests.support.report_pictures REPORT.html docs

The top of the page, to the end of its first figure: as on a screen, in the dark, and as on a phone of 390 pixels.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDE, PHONE = 1100, 390  # pixels
VIEWS = {"report": (WIDE, "light"), "report_dark": (WIDE, "dark"), "report_phone": (PHONE, "light")}


def chromium() -> str | None:
    """Debian's browser, or another of its family; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def missing_browser() -> str | None:
    """What a test in a browser lacks on this machine; None where there is all of it."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright, which drives the browser, is not installed"
    return None if chromium() else "there is no chromium on this machine"


@contextmanager
def opened(page: Path, width: int, scheme: str) -> Iterator[Any]:
    """The page in a browser window of so many pixels, in the `light` or in the `dark`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab = context.new_page()
            tab.requests = []
            tab.on("request", lambda request: tab.requests.append(request.url))
            tab.goto(page.resolve().as_uri())
            yield tab
        finally:
            browser.close()


def take_pictures(page: Path, folder: Path) -> list[Path]:
    """Write report.png, report_dark.png and report_phone.png into `folder`."""
    taken = []
    for name, (width, scheme) in VIEWS.items():
        with opened(page, width, scheme) as tab:
            bottom = tab.evaluate("document.querySelector('figure').getBoundingClientRect().bottom + window.scrollY")
            taken.append(folder / f"{name}.png")
            clip = {"x": 0, "y": 0, "width": width, "height": bottom + 12}
            tab.screenshot(path=taken[-1], full_page=True, clip=clip)
    return taken


if __name__ == "__main__":
    print(*take_pictures(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")

"""Pictures of a finished study in MLflow's own interface, as a real browser shows it.

    python -m tests.browser.mlflow_pages STUDY_DIR docs/pictures      (a study recorded into its own SQLite store)

Every page is reached by the clicks that the README names, and waited for until it shows what it is about, so a picture
of an empty page cannot come out.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lowrank.utils import OneLineParser
from tests.support.report_pictures import chromium
from tests.support.servers import LIGHT
from tests.support.waiting import scaled, wait_until

SECONDS = 120  # that a page or the server may take, scaled as all limits of tests are
STILL_MS, STILL_CHECKS = 500, 12  # a page is taken when it has not moved for so long, at the latest after 12 looks
SIZE, ALL = {"width": 1280, "height": 720}, {"width": 2000, "height": 1000}  # the second has room for eight runs
COLUMNS = ("params", "test_error", "val_error", "method.dims", "method.name")
AXES = ("method.name", "method.dims", "params", "train.weight_decay")  # of the parallel coordinates, before val_error
RULE, ORDER = "tags.role = 'search' and tags.broken = 'no'", "val_error"
CURVES = "^val_error$|^val_loss|^train_error"  # a regular expression, as MLflow takes it
DROPPED = ("Dataset", "Source", "Models")  # columns of the list that are shown unasked
COMPARED = 8  # trials in the compare view
CLOSE_ASSISTANT = """
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""


@contextmanager
def interface(database: Path) -> Iterator[str]:
    """`mlflow ui` on a database, until the block ends; yields its address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **LIGHT},
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/health")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(address: str) -> None:
    def answers() -> bool:
        try:
            urllib.request.urlopen(address, timeout=2).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    wait_until(answers, f"an answer of {address}", seconds=SECONDS)


class Pages:
    """Opens the pages of one study one after the other; `folder` takes the pictures."""

    def __init__(self, page: Any, address: str, database: Path, folder: Path):
        self.page, self.address, self.folder = page, address, folder
        with closing(sqlite3.connect(database)) as store:
            ((self.name,),) = store.execute("select name from experiments where experiment_id != 0").fetchall()
            known = {name for (name,) in store.execute("select key from metrics union select key from params")}
            self.columns, self.axes = ([name for name in names if name in known] for names in (COLUMNS, AXES))

    def _keep(self, name: str) -> Path:
        path, before = self.folder / f"mlflow_{name}.png", b""
        for _ in range(STILL_CHECKS):  # charts move into place
            self.page.wait_for_timeout(STILL_MS)
            picture = self.page.screenshot(path=path)
            if picture == before:
                break
            before = picture
        return path

    def _shows(self, *texts: str) -> None:
        for text in texts:
            self.page.get_by_text(text).first.wait_for()

    def _link(self, name: str) -> None:
        self.page.get_by_role("link", name=name, exact=True).first.click()

    def _home(self) -> None:
        self.page.goto("about:blank")  # else only the part after # changes, and the old page may stay
        self.page.goto(self.address)
        self.page.get_by_text("Model training", exact=True).first.click()

    def open_list(self) -> None:
        """Model training > Experiments > the study; the search's trials, best first."""
        self._home()
        self._link("Experiments")
        self._link(self.name)
        self._shows("matching runs")
        self.page.locator("input[placeholder*=metrics]").fill(RULE)
        self.page.keyboard.press("Enter")
        for chosen in (f"sort-select-{ORDER}", "sort-select-asc"):
            self.page.get_by_role("button", name="Sort: ").click()
            self.page.get_by_test_id(chosen).click()
            self.page.keyboard.press("Escape")
        self._shows(f"Sort: {ORDER}", "matching runs")

    def run_list(self) -> Path:
        """The trials of the search with sizes, errors and shapes as columns."""
        self.open_list()
        self.page.get_by_role("button", name="Columns").click()
        search = self.page.get_by_placeholder("Search columns")
        for column in (*self.columns, *DROPPED):
            search.fill(column)
            entry = self.page.locator(".du-bois-light-tree-treenode").filter(has_text=re.compile(f"^{column}$"))
            box = entry.locator(".du-bois-light-tree-checkbox").first  # `params` is a parameter too, below
            if ("tree-checkbox-checked" in box.get_attribute("class")) is (column in DROPPED):
                box.click()
        self.page.keyboard.press("Escape")
        return self._keep("runs")

    def compare(self) -> list[Path]:
        """The eight best ticked: parallel coordinates, and below them the runs beside each other."""
        for place in range(COMPARED):  # rows stand in the page's source in another order
            self.page.locator(f'.ag-row[row-index="{place}"] .ag-selection-checkbox input').check(force=True)
        self.page.get_by_role("button", name="Compare").click()
        self._shows(f"Comparing {COMPARED} Runs", "Parallel Coordinates Plot", "Run details")
        self.page.get_by_text("Clear All").click()
        self._choose(0, self.axes)
        self._choose(1, [ORDER])
        self.page.get_by_role("heading", name="Comparing").click()
        pictures = [self._keep("parallel")]
        self.page.set_viewport_size(ALL)
        for place in (0, 1):  # parameters, metrics
            self.page.get_by_role("switch").nth(place).click()
        top = "heading => heading.scrollIntoView({block: 'start'})"
        self.page.get_by_text("Run details", exact=True).first.evaluate(top)
        pictures.append(self._keep("compare"))
        self.page.set_viewport_size(SIZE)
        return pictures

    def _choose(self, box: int, names: Sequence[str]) -> None:
        """Choose entries of one of the two boxes beside the parallel coordinates."""
        self.page.get_by_role("combobox").nth(box).click()
        for name in names:
            self.page.keyboard.type(name)
            self.page.locator(f'.du-bois-light-select-item-option[title="{name}"]').last.click()
        self.page.keyboard.press("Escape")

    def chart(self) -> Path:
        """Errors over the epochs, in the list's own chart view."""
        self.open_list()
        self.page.locator("label:has(input[value=CHART])").click()
        self.page.get_by_placeholder("Search metric charts").fill(CURVES)
        self.page.get_by_text("(3)", exact=True).wait_for()
        return self._keep("epochs")

    def models(self) -> Path:
        """Model training > Model registry > the study: its versions and aliases."""
        self._home()
        self._link("Model registry")
        self.page.get_by_role("dialog").wait_for()  # on the first visit: what is new there
        self.page.keyboard.press("Escape")
        self._link(self.name)
        self._shows("Versions", "best")
        for section in ("Description", "Tags"):
            self.page.get_by_text(section, exact=True).first.click()
        return self._keep("models")


def take_pictures(study_dir: Path, folder: Path, *, models: bool = True) -> None:
    """Write the pictures of a study into `folder`."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    database = study_dir / "mlflow.db"
    with interface(database) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(1000 * scaled(SECONDS))
        page.add_init_script(CLOSE_ASSISTANT)
        pages = Pages(page, address, database, folder)
        for what in (pages.run_list, pages.compare, pages.chart, *([pages.models] if models else [])):
            print(what())
        browser.close()


if __name__ == "__main__":
    parser = OneLineParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    take_pictures(asked.study, asked.folder)

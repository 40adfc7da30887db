"""Pictures of a finished study in MLflow's own interface, as a real browser shows it.

    python -m tests.browser.mlflow_pages STUDY_DIR docs      (a study recorded into its own SQLite store)

Each page is waited for until it shows what it is about, so a picture of an empty page cannot come out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.servers import LIGHT

SECONDS = 120  # that a page or the server may take on a busy machine
SIZE = {"width": 1280, "height": 640}
COLUMNS = ("params", "test_error", "val_error", "method.dims", "method.name", "train.scaled_decay")
DROPPED = ("Dataset", "Source", "Models")  # columns of the list that are shown unasked
COMPARED = 8  # trials in the compare view
CLOSE_ASSISTANT = """
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""


def chromium() -> str | None:
    """Where the browser is; None when there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
    limit = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > limit:
                raise
            time.sleep(0.5)


class Pages:
    """Opens the pages of one study one after the other; `folder` takes the pictures."""

    def __init__(self, page: Any, address: str, database: Path, folder: Path):
        self.page, self.address, self.folder = page, address, folder
        with closing(sqlite3.connect(database)) as store:
            key = "select experiment_id, name from experiments where experiment_id != 0"
            (self.experiment, self.name), *_ = store.execute(key).fetchall()
            query = """
                select r.run_uuid, r.name from runs r join tags t on t.run_uuid = r.run_uuid
                where t.key = 'role' and t.value = 'search' and r.lifecycle_stage = 'active' order by r.start_time
            """
            known = {name for (name,) in store.execute("select key from metrics union select key from params")}
            self.columns = [name for name in COLUMNS if name in known]
            self.runs: list[tuple[str, str]] = store.execute(query).fetchall()[:COMPARED]

    def _open(self, path: str, *shown: str) -> None:
        """Go to a page and wait until it shows all of `shown`."""
        self.page.goto("about:blank")  # else only the part after # changes, and the old page may stay
        self.page.goto(f"{self.address}/#/{path}")
        for text in shown:
            self.page.get_by_text(text).first.wait_for(timeout=1000 * SECONDS)

    def _keep(self, name: str) -> Path:
        self.page.wait_for_timeout(2500)  # charts move into place
        path = self.folder / f"mlflow_{name}.png"
        self.page.screenshot(path=path)
        return path

    def run_list(self) -> Path:
        """The trials of the search, best first, with sizes, errors and shapes as columns."""
        rule = quote("tags.role = 'search' and tags.broken = 'no'")
        order = f"orderByKey={quote('metrics.`val_error`')}&orderByAsc=true"
        self._open(f"experiments/{self.experiment}/runs?searchFilter={rule}&{order}", "matching runs", self.runs[0][1])
        self.page.get_by_role("button", name="Columns").click()
        search = self.page.get_by_placeholder("Search columns")
        for column in (*self.columns, *DROPPED):
            search.fill(column)
            entry = self.page.locator(".du-bois-light-tree-treenode").filter(has_text=re.compile(f"^{column}$"))
            entry.locator(".du-bois-light-tree-checkbox").click()
        self.page.keyboard.press("Escape")
        return self._keep("runs")

    def compare(self) -> list[Path]:
        """Eight trials: parallel coordinates, and below them their parameters beside each other."""
        runs = quote(json.dumps([run for run, _ in self.runs]))
        experiments = quote(json.dumps([str(self.experiment)]))
        self._open(f"compare-runs?runs={runs}&experiments={experiments}", "Parallel Coordinates Plot", "Run details")
        chosen = self.page.locator(".du-bois-light-select-selection-item")
        chosen.filter(has_text=re.compile("^params$")).locator(".du-bois-light-select-selection-item-remove").click()
        self.page.get_by_role("combobox").nth(1).click()
        self.page.keyboard.type("val_error")
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Escape")
        pictures = [self._keep("parallel")]
        for section in ("Visualizations", "Run details"):
            self.page.get_by_text(section, exact=True).first.click()
        for place in (0, 1):  # parameters, metrics
            self.page.get_by_role("switch").nth(place).click()
        top = "heading => heading.scrollIntoView({block: 'start'})"
        self.page.get_by_text("Parameters", exact=True).first.evaluate(top)
        return [*pictures, self._keep("compare")]

    def chart(self) -> Path:
        """Validation error over the epochs, in the list's own chart view."""
        rule = quote("tags.role = 'search' and tags.broken = 'no'")
        order = f"orderByKey={quote('metrics.`val_error`')}&orderByAsc=true"
        path = f"experiments/{self.experiment}/runs?compareRunsMode=CHART&searchFilter={rule}&{order}"
        self._open(path, "Model metrics", self.runs[0][1])
        self.page.get_by_placeholder("Search metric charts").fill("val_error|^val_loss|^train_error")
        self.page.get_by_text("(3)", exact=True).wait_for()
        return self._keep("epochs")

    def models(self) -> Path:
        """The registered model with its versions and aliases."""
        self._open(f"models/{quote(self.name)}", "Versions", "best")
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
        page.set_default_timeout(1000 * SECONDS)
        page.add_init_script(CLOSE_ASSISTANT)
        pages = Pages(page, address, database, folder)
        for what in (pages.run_list, pages.compare, pages.chart, *([pages.models] if models else [])):
            print(what())
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    take_pictures(asked.study, asked.folder)

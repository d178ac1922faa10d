"""A Chromium without a screen, and pages that are watched while they are used."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.debian import chromium


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Debian's headless shell, or the Chromium of this system."""
    if request.config.getoption("without_browser"):
        pytest.skip("--without-browser")
    try:
        program, environment = chromium()
    except RuntimeError as error:
        raise RuntimeError(f"{error}; leave it out: --without-browser") from error
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=str(program), env={**os.environ, **environment}, args=["--no-sandbox"]
        )
        yield found
        found.close()


class Watched:
    """A page that is opened from disk; on leaving, nothing may have gone wrong in it."""

    def __init__(self, browser: Browser, folder: Path, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("requestfailed", lambda request: self._failed(request.url, request.failure))
        self.page.on("request", lambda request: self._look(request.url, folder))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self._address = (folder / "index.html").as_uri()

    def _failed(self, url: str, reason: str | None) -> None:
        if reason != "net::ERR_ABORTED":  # what the page was still reading when it was left
            self.wrong.append(f"failed: {url}: {reason}")

    def _look(self, url: str, folder: Path) -> None:
        if not url.startswith((f"{folder.as_uri()}/", "data:", "blob:")):
            self.wrong.append(f"request: {url}")

    def __enter__(self) -> Page:
        self.page.goto(self._address)
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.page.close()
        if kind is None:
            assert self.wrong == []

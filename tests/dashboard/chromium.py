"""The browser that the tests drive, and when a page has come to rest."""

from __future__ import annotations

import shutil

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def settled(page) -> None:  # type: ignore[no-untyped-def]
    """Wait until no work and no drawing is under way: what is clicked before that is replaced."""
    busy = "[data-job=running], [data-job=queued], ._dash-loading-callback"
    for _ in range(2):
        page.wait_for_function(f"!document.querySelector('{busy}')")
        page.wait_for_timeout(300)


def cut_tables(page) -> list[str]:  # type: ignore[no-untyped-def]
    """Summaries of the open tables whose last columns lie outside their card."""
    settled(page)
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('details.table[open]')]
            .filter(d => [...d.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth))
            .map(d => d.querySelector('summary').innerText)"""
    )
    return found

"""Loads the app with many people at once: errors, answers' times, memory; and how soon a browser shows the page.

    python -m tests.app.load [--users 50] [--requests 1000]

Each user asks one question after the other over HTTP, as the page does, of the tabs in turn, no question twice; then
all ask what a new page asks. To the app every question is a session of its own, which takes the most memory.
First paint is Chromium's own `first-contentful-paint`, where playwright and a chromium are installed.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from ncpl import record
from ncpl.views.inputs import INPUTS, from_query
from tests.app.server import ROOT, served

RESULT = ROOT / "benchmarks" / "results" / "app_load.json"
TABS = ("forecast", "compare", "curve", "sweep", "benchmarks", "plan")
# Answers whose first argument is a file have one more.
FILES = {"curve": 1}


def ask(address: str, tab: str, seed: int) -> float:
    """One question and its answer; seconds.

    Raises:
        AssertionError: the answer is an error.
    """
    inputs = from_query("")[1] | {"learning rate": f"{0.001 * (1 + seed % 1000 / 250):.6f}"}
    values = [None] * FILES.get(tab, 0) + [inputs[name] for name in INPUTS]
    start = time.perf_counter()
    where = f"{address}gradio_api/call/{tab}"
    body = json.dumps({"data": values}).encode()
    event = json.load(urlopen(Request(where, body, {"Content-Type": "application/json"}), timeout=300))["event_id"]
    answer = urlopen(f"{where}/{event}", timeout=300).read().decode()
    seconds = time.perf_counter() - start
    assert "event: complete" in answer, answer[:200]
    assert "ncpl-headline" in answer, answer[:200]
    return seconds


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


def load(address: str, pid: int, users: int, requests: int, *, alike: bool = False) -> dict[str, Any]:
    """All requests by so many users at once, each a question of its own, or all `alike` in each tab."""
    left, taken, errors, memory = iter(range(requests)), [], [], {}
    lock = threading.Lock()

    def user() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            try:
                seconds = ask(address, TABS[number % len(TABS)], 0 if alike else number)
            except Exception as error:
                with lock:
                    errors.append(f"{TABS[number % len(TABS)]}: {error}"[:200])
                continue
            with lock:
                taken.append(seconds)
                if len(taken) % 100 == 0:
                    memory[len(taken)] = round(resident_mib(pid), 1)

    start = time.perf_counter()
    threads = [threading.Thread(target=user) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return {
        "users": users,
        "requests": requests,
        "errors": len(errors),
        "first_errors": errors[:3],
        "requests_per_s": len(taken) / seconds,
        "median_s": statistics.median(taken),
        "p99_s": sorted(taken)[int(0.99 * len(taken))],
        "resident_mib_after": memory,
    }


def first_paint(address: str, visits: int = 5) -> dict[str, Any] | None:
    """Milliseconds until Chromium paints something, and until the first answer stands there."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    paints, answers = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(visits):
            page = browser.new_context().new_page()
            start = time.perf_counter()
            page.goto(address)
            page.wait_for_selector(".ncpl-headline", timeout=60_000)
            answers.append(1000 * (time.perf_counter() - start))
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            page.context.close()
        browser.close()
    return {name: {"median": statistics.median(times), "min": min(times), "max": max(times)}
            for name, times in (("first_paint_ms", paints), ("first_answer_ms", answers))}  # fmt: skip


def main() -> None:
    """Runs everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with served() as server:
        for tab in TABS:
            ask(server.address, tab, 0)
        alone = {tab: statistics.median(ask(server.address, tab, 7 * i + 1) for i in range(5)) for tab in TABS}
        result = {
            **record.provenance(),
            "seeds": [],
            "load_average": os.getloadavg(),
            "alone_s": alone,
            "browser": first_paint(server.address),
            "load": load(server.address, server.pid, arguments.users, arguments.requests),
            "load_alike": load(server.address, server.pid, arguments.users, arguments.requests, alike=True),
            "load_average_after": os.getloadavg(),
        }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {name: result[name] for name in ("load_average", "alone_s", "browser", "load", "load_alike")}, indent=1
        )
    )


if __name__ == "__main__":
    main()

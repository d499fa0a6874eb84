"""Shared by all tests — the profile, which sets how thorough they are, and the figures printed at the end."""

import faulthandler
import os
import sys
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # OpenMP threads spin while they wait for a core: two workers on two cores took ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))  # so that tests of one folder can share a module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--profile",
        choices=("ci", "long"),
        default=os.environ.get("ZARROW_TEST_PROFILE", "ci"),
        help="how many states the crash tests and the state machines try: minutes' worth, or hours'; "
        "'long' also runs the tests marked long",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Remove deadlines, so that slow machines fail no test, and let the long profile run every test."""
    hypothesis.settings.register_profile("untimed", hypothesis.settings.default, deadline=None)
    hypothesis.settings.load_profile("untimed")
    if config.getoption("--profile") == "long":
        if config.option.markexpr == "not long":
            config.option.markexpr = ""
        config.option.timeout = 0 if config.option.timeout is None else config.option.timeout


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Cancel the watchdog in the long profile: dumping the stacks of running threads can end the process."""
    if item.config.getoption("--profile") == "long":
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def profile(request: pytest.FixtureRequest) -> str:
    """Return the chosen profile."""
    return str(request.config.getoption("--profile"))


@pytest.fixture
def figures(record_property):
    """Return a function that records figures, to be printed after all tests."""

    def note(what: str, **numbers: int) -> None:
        record_property("figures", (what, numbers))

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the figures: points and states tried, and how many were bad."""
    totals: dict[str, dict[str, int]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "figures" and report.when == "call":
                    total = totals.setdefault(value[0], {})
                    for key, number in value[1].items():
                        total[key] = total.get(key, 0) + number
    if totals:
        terminalreporter.section("figures")
        for what, numbers in sorted(totals.items()):
            terminalreporter.write_line(f"{what}: " + ", ".join(f"{n:,} {key}" for key, n in numbers.items()))

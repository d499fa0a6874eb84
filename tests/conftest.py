"""What all tests share: how thorough to be, and the figures that they print at the end."""

import faulthandler
import os
import sys
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of OpenMP that wait for a core spin meanwhile: two workers on two cores took ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))  # so that tests of one folder can share a module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--profile",
        choices=("ci", "long"),
        default=os.environ.get("ZARROW_TEST_PROFILE", "ci"),
        help="how many states the crash tests and the state machines try: minutes, or hours; "
        "'long' runs the tests that are marked so, too",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let no test fail for a slow machine, and the long profile be one option that leaves nothing out."""
    hypothesis.settings.register_profile("untimed", hypothesis.settings.default, deadline=None)
    hypothesis.settings.load_profile("untimed")
    if config.getoption("--profile") == "long":
        if config.option.markexpr == "not long":
            config.option.markexpr = ""
        config.option.timeout = 0 if config.option.timeout is None else config.option.timeout


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let no watchdog dump the stacks of a long test: of threads that run, that can end the process."""
    if item.config.getoption("--profile") == "long":
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def profile(request: pytest.FixtureRequest) -> str:
    """Return the profile that was asked for."""
    return str(request.config.getoption("--profile"))


@pytest.fixture
def figures(record_property):
    """Return a function that notes a figure, to be printed when all tests are done."""

    def note(what: str, **numbers: int) -> None:
        record_property("figures", (what, numbers))

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the figures: points and states tried, and what was wrong with them."""
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

"""Kills — a process killed at any call, or within one, loses no accepted row."""

import random
from itertools import chain, islice

import pytest

from crash.disk import Disk
from crash.states import cuts, judge_all, kills, record_recovery
from crash.workloads import WORKLOADS, record

pytestmark = pytest.mark.slow

STATES_PER_CRASH = 30
"""Power cuts per recovery that CI tries, in addition to kills at each of its calls."""


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_change_of_the_disk_goes_through_the_table_of_calls(name):
    """Replaying the recorded calls gives exactly the files that the run left."""
    recording = record(WORKLOADS[name])
    disk = Disk(recording.base)
    for call in recording.log:
        disk.do(call)
    assert disk.now().files() == recording.end.files()
    assert disk.now().dirs == recording.end.dirs


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_kill_at_any_call_loses_no_accepted_row(name, figures, profile):
    """After a SIGKILL before or within any call, accepted rows are there once and the run can continue."""
    recording = record(WORKLOADS[name])
    states = kills(recording) if profile == "long" else islice(kills(recording), None, None, 2)
    tally = judge_all(states, WORKLOADS[name], thorough_every=5 if profile == "ci" else 1)
    figures("kill and tear at every call", calls=len(recording.log), states=tally.states, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_crash_inside_recovery_or_finalize_is_harmless(name, figures, profile):
    """Recovery and finalize lose nothing when they are killed, or the power is cut, at any of their calls."""
    rng = random.Random(name)
    recording = record(WORKLOADS[name])
    points = range(len(recording.log) + 1)
    if profile == "ci":
        points = sorted(rng.sample(points, 3))

    def states():
        for point in points:
            disk, recovery = record_recovery(recording, point)
            every = 1 if profile == "long" else max(1, len(recovery.log) // STATES_PER_CRASH)
            killed, cut = kills(recovery, torn=profile == "long"), cuts(recovery, rng, 1, disk, every)
            for state in chain(killed, cut):
                yield state._replace(label=f"recovery after a kill before call {point}: {state.label}")

    tally = judge_all(states(), WORKLOADS[name], thorough_every=25)
    figures(
        "crash inside recovery and finalize",
        crashes=len(points),
        states=tally.states,
        distinct=tally.distinct,
        bad=len(tally.bad),
    )
    assert not tally.bad, "\n".join(tally.bad)


def test_a_store_is_built_upon_only_when_its_name_is_durable(figures):
    """A store whose creator died before its name was durable survives a power cut under the next writer."""
    recording = record(WORKLOADS["small"])
    named = 1 + next(number for number, call in enumerate(recording.log) if call.name == "link")
    disk, recovery = record_recovery(recording, named)
    tally = judge_all(cuts(recovery, random.Random(0), 5, disk), WORKLOADS["small"], thorough_every=0)
    figures("power cuts while a store is made again", states=tally.states, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad)

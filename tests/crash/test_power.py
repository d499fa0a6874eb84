"""Power cuts — they take any part of what was not synced, and nothing else."""

import random

import pytest

from crash.states import cuts, judge_all, record_recovery
from crash.workloads import WORKLOADS, record

pytestmark = pytest.mark.slow

STATES = {"ci": 450, "long": 35_000}  # for each of eight workloads


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_power_cut_takes_no_durable_row_and_makes_no_wrong_one(name, figures, profile):
    """Whatever unsynced bytes and names are lost, durable rows are there, and the rows form a prefix."""
    recording = record(WORKLOADS[name])
    per_call = -(-STATES[profile] // (len(recording.log) + 1))
    found = cuts(recording, random.Random(name), per_call)
    tally = judge_all(found, WORKLOADS[name], thorough_every=20)
    figures("power cuts", states=tally.states, distinct=tally.distinct, bad=len(tally.bad))
    assert not tally.bad, "\n".join(tally.bad)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_second_power_cut_while_recovering_from_the_first_is_harmless(name, figures, profile):
    """A power cut during recovery from a power cut keeps what was durable before the first."""
    rng = random.Random(name)
    recording = record(WORKLOADS[name])
    bad: list[str] = []
    states = distinct = 0
    for _ in range({"ci": 2, "long": 400}[profile]):
        point = rng.randrange(len(recording.log) + 1)
        cut = [state.tree for state in cuts(recording, rng, 1)][point]
        disk, recovery = record_recovery(recording, point, cut)
        tally = judge_all(cuts(recovery, rng, 1, disk), WORKLOADS[name], thorough_every=0)
        states, distinct, bad = states + tally.states, distinct + tally.distinct, bad + tally.bad
    figures("power cuts during recovery from one", states=states, distinct=distinct, bad=len(bad))
    assert not bad, "\n".join(bad[:20])

"""Crash tests — no accepted row is lost, doubled or silently wrong, whatever dies and whatever the disk does.

Each run prints figures: calls, states, faults, kills, and the bad states. There are two profiles:

* ``pytest tests/crash tests/stateful``: minutes, part of every full run;
* ``pytest --profile long tests/crash tests/stateful`` (or ``ZARROW_TEST_PROFILE=long``): many hours. 210,000
  power cuts, 10,000 and 1,000 SIGKILLs, every bit, crashes in recovery from every crash, 2 × 1,000 × 500
  steps of the state machine, 2,295 pairs of commands at once. It also runs the tests marked ``long``, and has
  no timeout.

`disk` records calls and models what a power cut leaves of them; `workloads` has the runs to be killed and the
checks of what they leave; `states` combines the two; `pairs` has commands that run in processes of their own.
The test files define what happens to the runs.
"""

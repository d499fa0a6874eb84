"""Is anything accepted ever lost, doubled or silently wrong, whatever dies and whatever the disk does?

Each run prints figures: calls, states, faults, kills, and what was bad. There are two profiles:

* ``pytest tests/crash tests/stateful``: minutes, in every run of all tests;
* ``pytest --profile long tests/crash tests/stateful`` (or ``ZARROW_TEST_PROFILE=long``): many hours. 210,000
  power cuts, 10,000 and 1,000 SIGKILLs, every bit, crashes in recovery from every crash, 2 × 1,000 × 500
  steps of the state machine. It runs the tests marked ``long``, too, and knows no timeout.

`disk` records calls and models what a power cut leaves of them; `workloads` has the runs that are killed and
what must be true of whatever they leave; `states` puts both together. The tests say what is done to the runs.
"""

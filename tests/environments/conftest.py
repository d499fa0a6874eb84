"""Not collected: a script of its own, which needs EveryQuery."""

collect_ignore = ["everyquery_multitask.py"]

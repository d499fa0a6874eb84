"""Evaluating predictions — EQ_evaluate's scores per task, with intervals, plots and a report.

pip install 'zarrow[analysis]'
python3 examples/analysis/evaluate_predictions.py [STORE]

In an EveryQuery store the columns are found automatically: occurs_prob, the label boolean_value (null where
censored), query and duration_days.
"""

# %% A store: your own, or a small one with simulated predictions
import sys

import zarrow
from zarrow import analysis
from zarrow.analysis import plot
from zarrow.analysis.report import report
from zarrow.testing import example_predictions

path = sys.argv[1] if len(sys.argv) > 1 else example_predictions("predictions.zarrow").path
store = zarrow.open(path)
label = "boolean_value" if "boolean_value" in store.schema.names else "occurs"
tasks = [name for name in ("query", "duration_days") if name in store.schema.names]

# %% Per task. Censored rows are counted and excluded, as in EQ_evaluate; the bootstrap draws whole patients.
found = analysis.evaluate(store, "occurs_prob", label, by=tasks, unit="subject_id", bootstrap=100)
print(f"{found.overall['labelled']:,} rows with a label, {found.missing_labels:,} censored")
scores = f"{'AUROC':>6}  {'95 %':14} {'AUPRC':>6} {'Brier':>6} {'ECE':>6}"
print(f"{'task':24} {'rows':>6} {'prevalence':>10} {scores}")
for row in found.table.to_pylist():
    task = ", ".join(str(row[name]) for name in tasks)
    if row["auroc"] is None:
        print(f"{task:24} {row['labelled']:6} {'':10} one class only")
        continue
    interval = f"[{row['auroc_low']:.2f}, {row['auroc_high']:.2f}]"
    print(
        f"{task:24} {row['labelled']:6} {row['prevalence']:10.1%} {row['auroc']:6.3f}  {interval:14} "
        f"{row['auprc']:6.3f} {row['brier']:6.3f} {row['ece']:6.3f}"
    )

# %% A composite task: does any of the queries occur? One row per subject and time.
for how in ("max", "or"):
    table = analysis.compose(store, how, label=label)
    any_of = analysis.evaluate(table, "occurs_prob", label, bootstrap=0).overall
    print(f"\nany query, joined by {how}: {table.num_rows:,} subjects and times, AUROC {any_of['auroc']:.3f}")

# %% Plots, and a report to share
plot.save(plot.roc(store, by="query"), "roc.svg")
plot.save(plot.calibration(store), "calibration.svg")
report(store, "report.html", bootstrap=50)
print("\ndrawn: roc.svg, calibration.svg; written: report.html")

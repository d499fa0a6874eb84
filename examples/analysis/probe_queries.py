"""Probing — what a linear model can predict from the vectors, per query, split by patient.

pip install 'zarrow[analysis]'
python3 examples/analysis/probe_queries.py [STORE]
"""

# %% A store: your own, or a small one with simulated predictions
import sys

import pyarrow.compute as pc

import zarrow
from zarrow import analysis
from zarrow.testing import example_predictions

path = sys.argv[1] if len(sys.argv) > 1 else example_predictions("predictions.zarrow").path
store = zarrow.open(path)

# %% One probe for all queries, trained on some patients and evaluated on the others, query by query
probe = analysis.probe(store, "occurs", by="query", group="subject_id", bootstrap=100)
overall = probe.overall
print(f"{len(probe.train_rows):,} training rows, {len(probe.test_rows):,} test rows of other patients")
print(f"AUROC {overall['auroc']:.3f} [{overall['auroc_low']:.3f}, {overall['auroc_high']:.3f}]\n")
print(f"{'query':10} {'rows':>5} {'positive':>9} {'AUROC':>6}  {'95 %':14} {'ECE':>5}")
for row in probe.report.to_pylist():
    interval = f"[{row['auroc_low']:.2f}, {row['auroc_high']:.2f}]"
    print(
        f"{row['query']:10} {row['labelled']:5} {row['prevalence']:8.0%} {row['auroc']:7.3f}  "
        f"{interval:14} {row['ece']:5.3f}"
    )

# %% A separate probe per query, compared with the model's own probability
print(f"\n{'query':10} {'own probe':>10} {'the model':>10}")
for query in sorted(store.table(["query"])["query"].unique().to_pylist())[:3]:
    only = pc.field("query") == query
    own = analysis.probe(store, "occurs", group="subject_id", filter=only, bootstrap=0)
    model = analysis.evaluate(store, "occurs_prob", "occurs", filter=only, bootstrap=0)
    print(f"{query:10} {own.overall['auroc']:10.3f} {model.overall['auroc']:10.3f}")

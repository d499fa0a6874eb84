"""Comparing checkpoints — what further training did to the vectors, row by row.

pip install 'zarrow[analysis]'
python3 examples/analysis/compare_checkpoints.py [OLD NEW]
"""

# %% Two stores: your own, or a small one and a copy whose vectors have moved
import sys

import numpy as np

import zarrow
from zarrow import analysis
from zarrow.analysis import plot
from zarrow.testing import example_predictions

if len(sys.argv) > 2:
    old, new = map(zarrow.open, sys.argv[1:3])
else:
    old = example_predictions("old.zarrow")
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype(np.float32)
    keys = ["subject_id", "prediction_time", "query"]
    with zarrow.Writer("new.zarrow", keys=keys, mode="w") as writer:
        for batch, vectors in old.join(columns=[*keys, "occurs", "occurs_prob"], batch_size=1000):
            moved = vectors["query_embed"] @ (np.eye(8, dtype=np.float32) * 3 + turn) / 3
            moved[np.asarray(batch["query"]) == "code//3"] += 1.5  # one query moves more than the others
            writer.append(batch, {"query_embed": moved})
        writer.finalize()
    new = zarrow.open("new.zarrow")

# %% Rows are matched by key; neither array is loaded.
found = analysis.compare(old, new, by="query", probability="occurs_prob")
print(f"{found.matched:,} rows in both, {len(found.only_a):,} and {len(found.only_b):,} in one")
print(f"linear CKA           {found.cka:.3f}   (1: the same up to rotation and scale)")
print(f"Procrustes disparity {found.procrustes:.3f}   (0: likewise)")
print(f"mean cosine          {found.cosine_mean:.3f}")
print(f"neighbours shared    {found.neighbour_overlap:.1%} of the {found.k} nearest")

# %% Which queries moved most?
print()
for row in sorted(found.groups.to_pylist(), key=lambda row: -row["drift"])[:3]:
    print(f"{row['query']:10} mean moved by {row['drift']:.2f}, mean cosine {row['cosine_mean']:.3f}")

# %% A plot for the report
plot.save(plot.drift(old, new, by="query", probability="occurs_prob"), "drift.png")
print("\ndrawn: drift.png")

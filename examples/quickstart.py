"""Quickstart — predict with Lightning straight into a store, then query it.

pip install 'zarrow[predict]'
python3 examples/quickstart.py [STORE]
"""

import sys

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, TensorDataset

import zarrow
from zarrow.lightning import PredictionWriter

PATIENTS, QUERIES, HIDDEN = 2_000, ("stroke", "fracture", "sepsis"), 256


class Model(pl.LightningModule):
    """A stand-in for your model; what matters is the dict that predict_step returns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(32, HIDDEN)
        self.classify = torch.nn.Linear(HIDDEN, 1)

    def predict_step(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        vectors = self.embed(batch[0]).tanh()
        return {
            "occurs_prob": self.classify(vectors).squeeze(1).sigmoid(),  # one value per row: a column
            "query_embed": vectors,  # one vector per row: an array
        }


def main(path: str) -> None:
    torch.manual_seed(0)
    features = torch.randn(PATIENTS * len(QUERIES), 32)
    identifiers = pa.table(
        {
            "subject_id": np.repeat(np.arange(PATIENTS), len(QUERIES)),
            "query": list(QUERIES) * PATIENTS,
        }
    )

    writer = PredictionWriter(path, identifiers=identifiers, keys=["subject_id", "query"])
    trainer = pl.Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_checkpointing=False)
    loader = DataLoader(TensorDataset(features), batch_size=256)
    trainer.predict(Model(), loader, return_predictions=False)

    with zarrow.open(path) as store:
        print(store)
        likely = (pc.field("query") == "sepsis") & (pc.field("occurs_prob") > 0.6)
        for batch, vectors in store.join(filter=likely, batch_size=1024):
            norms = np.linalg.norm(vectors["query_embed"], axis=1)
            print(f"{batch.num_rows} rows with sepsis above 0.6; their vectors are {norms.mean():.2f} long")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "quickstart.zarrow")

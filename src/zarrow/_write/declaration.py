"""What did the caller say the store is, and is the store that?

Place: tier 3, used by `writer`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from zarrow._format import codecs
from zarrow._format.spec import PLAIN, StoreSpec
from zarrow._write.first_batch import infer_spec, kept_schema
from zarrow._write.given import Columns, to_host
from zarrow.errors import InvalidInputError, SchemaMismatchError

__all__ = ["Declaration"]

AUTO = "auto"
"""The codecs that suit the first batch."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the caller said the store is; None where the first batch, or the store, decides."""

    arrays: Mapping[str, tuple[int | Sequence[int], str]] | None
    schema: pa.Schema | None
    keys: Sequence[str]
    segment_rows: int | None
    codecs: Any

    @property
    def is_whole(self) -> bool:
        return self.arrays is not None and self.schema is not None and not self._has_auto()

    def _has_auto(self) -> bool:
        chosen = self.codecs
        named = chosen.values() if isinstance(chosen, Mapping) and "name" not in chosen else [chosen]
        return any(isinstance(one, str) and one == AUTO for one in named)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]] | None:
        if self.arrays is None:
            return None
        return {
            name: ((shape,) if isinstance(shape, int) else tuple(shape), _dtype_name(dtype))
            for name, (shape, dtype) in self.arrays.items()
        }

    def _chosen(self, array: str) -> Any:
        chosen = self.codecs
        return chosen.get(array) if isinstance(chosen, Mapping) and "name" not in chosen else chosen

    def _codecs(self, array: str, dtype: str, sample: Any = None) -> tuple[dict[str, Any], ...]:
        chosen = self._chosen(array)
        if isinstance(chosen, str) and chosen == AUTO:
            return PLAIN if sample is None else codecs.choose(np.asarray(to_host(sample)), dtype)
        return codecs.normalize(chosen, dtype)

    def _check_codecs(self, arrays: Iterable[str]) -> None:
        """Raise if codecs are given for an array that is not there: a typo would store it plainly."""
        names = list(arrays)
        if isinstance(self.codecs, Mapping) and "name" not in self.codecs:
            for name in self.codecs:
                if name not in names:
                    raise InvalidInputError(f"codecs: there is no array {name!r}; the arrays are {names}")

    def infer(self, table: Columns, arrays: Mapping[str, Any], provenance: Mapping[str, Any]) -> StoreSpec:
        """Return what the store is, as declared, or else as the first batch has it."""
        if self.keys and self.schema is None and table is None and not arrays:
            raise InvalidInputError(
                f"no batch tells the types of the keys {list(self.keys)}: declare schema= for a store "
                "without rows"
            )
        if table is not None or arrays or self.arrays is not None:  # not for a run without any row
            self._check_codecs(arrays if self.arrays is None else self.arrays)
        return infer_spec(
            table,
            arrays,
            keys=self.keys,
            segment_rows=self.segment_rows,
            codecs=lambda name, dtype: self._codecs(name, dtype, arrays.get(name)),
            schema=self.schema,
            declared=self._shapes(),
            provenance=provenance,
        )

    def check(self, spec: StoreSpec) -> None:
        """Raise `SchemaMismatchError` if the store is not what was declared."""
        differences = []

        def compare(what: str, declared: Any, stored: Any) -> None:
            if declared != stored:
                differences.append(f"{what}: the store has {stored}, declared is {declared}")

        shapes = self._shapes()
        if shapes is not None:
            compare("arrays", shapes, {array.name: (array.row_shape, array.dtype) for array in spec.arrays})
        if self.schema is not None:
            declared = kept_schema(self.schema, spec.keys)
            compare("columns", list(map(str, declared)), list(map(str, spec.schema)))
        if self.keys:
            compare("keys", tuple(self.keys), spec.keys)
        if self.segment_rows is not None:
            compare("segment_rows", self.segment_rows, spec.segment_rows)
        if self.codecs is not None:
            self._check_codecs(array.name for array in spec.arrays)
            for array in spec.arrays:
                if self._chosen(array.name) != AUTO:  # what was chosen then is what it is
                    compare(f"codecs of {array.name!r}", self._codecs(array.name, array.dtype), array.codecs)
        if differences:
            raise SchemaMismatchError(
                "; ".join(differences) + ": declare what the store has (or nothing), or write another store"
            )


def _dtype_name(dtype: object) -> str:
    """Return the name of a type that is declared as a name, or as numpy's or torch's."""
    if isinstance(dtype, str | type | np.dtype):
        with contextlib.suppress(TypeError):
            return np.dtype(dtype).name
    return str(dtype).removeprefix("torch.")

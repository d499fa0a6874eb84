"""What do embeddings look like, how good are they, and who is near whom: answered while rows stream by.

Nothing here loads an array: rows come in blocks (`analysis._rows.blocks`), what is known so far is joined
with what the
next block says, and memory does not grow with the store. ``pip install 'zarrow[analysis]'`` brings what it
needs: scipy, scikit-learn, DuckDB.

Place: tier 5, the edge that faces people with questions; ``import zarrow`` does not import it. Reads only.
"""

from zarrow.analysis._questions.compare import Comparison, compare
from zarrow.analysis._questions.compose import compose
from zarrow.analysis._questions.describe import ArrayDescription, Description, describe
from zarrow.analysis._questions.evaluate import Evaluation, evaluate
from zarrow.analysis._questions.map import Map, map_rows, place_rows
from zarrow.analysis._questions.nearest import Neighbours, nearest
from zarrow.analysis._questions.neighbour_index import NeighbourIndex, build_neighbours
from zarrow.analysis._questions.pca import Pca, pca
from zarrow.analysis._questions.probe import Probe, probe
from zarrow.analysis._questions.texts import embed_texts

__all__ = [
    "ArrayDescription",
    "Comparison",
    "Description",
    "Evaluation",
    "Map",
    "NeighbourIndex",
    "Neighbours",
    "Pca",
    "Probe",
    "build_neighbours",
    "compare",
    "compose",
    "describe",
    "embed_texts",
    "evaluate",
    "map_rows",
    "nearest",
    "pca",
    "place_rows",
    "probe",
]

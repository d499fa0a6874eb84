"""Questions — one file per function that `zarrow.analysis` offers."""

"""Rows — blocks of a store's rows, or of a Dataset's, on their way into an analysis."""

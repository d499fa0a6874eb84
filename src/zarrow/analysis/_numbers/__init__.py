"""Numbers — what streams of rows add up to: moments, sketches, scores, regressions, nearest neighbours."""

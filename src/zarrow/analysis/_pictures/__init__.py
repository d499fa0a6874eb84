"""Pictures — drawing the answers: figures, and the parts of the report's page."""

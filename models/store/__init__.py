"""Files of models: fetched, verified, and kept."""

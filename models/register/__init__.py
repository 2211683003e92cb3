"""Register a user's own model, and artifacts that were built on this machine."""

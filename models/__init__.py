"""Models: their descriptions, their files, and the one class that runs them. Nothing here depends on Ray."""

"""Ray as it is joined or started, and what a run keeps in it."""

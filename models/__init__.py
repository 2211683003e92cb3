"""Models: what they are, where their files come from, and the one class that runs them. Knows nothing of Ray."""

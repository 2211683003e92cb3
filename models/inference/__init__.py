"""Run a model: the one class that bulk actors and online replicas hold, and its devices."""

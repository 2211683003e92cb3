"""Joins or starts Ray, and keeps a run's state in it."""

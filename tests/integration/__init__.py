"""A package, so that its tests share one local Ray, which ends before others begin."""

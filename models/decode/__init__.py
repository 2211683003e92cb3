"""Bytes of an image to the pixels that a model wants."""

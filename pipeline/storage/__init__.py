"""Bytes on a disk or in an object store: listed, read and written, with retries."""

"""Open untrusted model files in a child process."""

"""Download, verify and cache model files."""

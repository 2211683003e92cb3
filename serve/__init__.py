"""The online endpoint on Ray Serve. Not built yet: see README.md, "What is there"."""

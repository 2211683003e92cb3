"""The only place that touches Ray's private parts: `patches.py` lists what is replaced and why, `looks_patches.py` reads.

Nothing outside this folder uses a name of Ray that begins with an underscore; a test checks this.
"""

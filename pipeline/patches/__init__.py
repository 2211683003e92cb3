"""The one room of Ray's private parts: `patches.py` lists what of Ray is replaced and why, `looks_patches.py` what is read.

Nothing outside of this folder touches a part of Ray whose name begins with an underscore; a test holds that.
"""

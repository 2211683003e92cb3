"""`shardlabel models quantize`: int8 from the user's own images."""

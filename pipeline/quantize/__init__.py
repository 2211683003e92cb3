"""`shardlabel models quantize`: an int8 model from the user's own images."""

"""`shardlabel diff`: compare what two DESTs say of the same images."""

"""`shardlabel relabel`: label some rows of a DEST anew, and copy the others."""

"""`shardlabel relabel`: label some rows of a DEST again, and copy the others."""

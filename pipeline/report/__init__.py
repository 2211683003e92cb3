"""`shardlabel report`: one page about a DEST."""

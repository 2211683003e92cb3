"""`shardlabel review`: which labels a person should review, and what the answers say about all labels."""

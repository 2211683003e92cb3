"""`shardlabel review`: which labels a person should look at, and what the answers say of all labels."""

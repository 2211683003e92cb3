"""`shardlabel cluster validate`: check manifests before they are applied."""

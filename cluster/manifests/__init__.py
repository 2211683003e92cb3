"""`shardlabel cluster render`: manifests from one validated configuration."""

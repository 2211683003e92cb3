"""`shardlabel cluster render`: build manifests from one validated configuration."""

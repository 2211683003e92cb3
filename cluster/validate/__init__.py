"""`shardlabel cluster validate`: manifests checked before they meet a cluster."""

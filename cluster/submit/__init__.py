"""`shardlabel submit`: run `label` as a job on a Ray cluster."""

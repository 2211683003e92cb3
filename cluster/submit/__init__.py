"""`shardlabel submit`: a run as a job on a Ray cluster."""

"""Bulk labelling on Ray Data: shards in, Parquet out, each image exactly once."""

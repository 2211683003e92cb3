"""SOURCE to samples: which shards there are, and what is in them."""

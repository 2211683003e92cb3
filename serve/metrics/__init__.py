"""What the endpoint counts, per replica and of all replicas."""

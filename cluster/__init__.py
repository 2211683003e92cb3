"""Running the same commands on clusters, and the console command that holds them all together."""

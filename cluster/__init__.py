"""Running the commands on clusters, and the console command that collects all of them."""

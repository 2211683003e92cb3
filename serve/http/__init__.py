"""The endpoint's HTTP side: routes, bodies, keys, the log, and the page."""

"""Templates of the HTML pages."""

"""What the HTML pages are made with."""

"""The page at `/`: label images in a browser, with no build step and nothing from elsewhere."""

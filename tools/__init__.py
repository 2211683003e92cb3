"""What builds the bundled model and the files in the repository; no part of the installed command."""

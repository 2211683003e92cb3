"""Tools that build the bundled model and generated files of the repository; not part of the installed command."""

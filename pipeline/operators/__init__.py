"""The stages of labelling, and how Ray Data runs them."""

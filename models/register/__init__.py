"""A user's own model: its entry, and what was made of it here."""

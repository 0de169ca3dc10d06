"""Models, sessions, and what generates text with them."""

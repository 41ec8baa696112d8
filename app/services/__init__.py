"""What Confide does: one concept a file. Services call the store and the key providers, and are called by routes."""

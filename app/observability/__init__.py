"""Metrics, logs and trace ids. Any layer may import it; it imports nothing of Confide but ids and errors."""

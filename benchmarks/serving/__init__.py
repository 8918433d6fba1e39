"""Load on a served engine."""

"""Packaging for the stacks that an engine is dropped into."""

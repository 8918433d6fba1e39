"""Faults that fcnopt has to bear, one family a file; `reliability.py` runs them, `tests/reliability` a few of each."""

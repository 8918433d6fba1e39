"""Parts of `benchmarks/growth.py`.

`variants.py` makes engines of one network for other frame sizes, batches and class counts, `engine.py` times one in a
process of its own, `peaks.py` measures what the machine can do at most, `page.py` shows the figures.
"""

"""The race of `benchmarks/peers.py`: many contenders, one clip, one machine, by turns.

Every contender is a process of its own (`with_*.py`, some in environments of their own), so that neither memory nor
threads mix. `wire.py` says how they are talked to, `process.py` is the end that asks, `scripts.py` what a peer's own
script does around its network. `making.py` makes the files that are raced, `contenders.py` lists who takes part,
`rounds.py` runs and scores them, `page.py` and `plot.py` show the figures.
"""

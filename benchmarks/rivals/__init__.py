"""Other quantizers on the same network and the same frames, for `benchmarks/accuracy.py`.

`rows.py` lists them, `measure.py` and `int8_share.py` judge every file by one rule, `page.py` shows the figures. The
files `with_*.py` are programs: they run in an environment of their own, made by `environment.py` from the pinned
requirements beside them, because these packages pin versions that fcnopt does not.
"""

"""Slimming: a trained FCN made faster by taking channels out, within an accuracy budget.

    frames --teacher--> scores of the original --statistics--> what every channel is worth
    --elimination, cost, plan--> widths --surgery--> narrow network --recovery--> distilled network --> checkpoint

Channels of a layer are removed in the order that costs the least loss, the kept ones take over what they can predict
of the removed ones, fc6 becomes a product of two smaller convolutions, and what is lost is trained back by distillation
from the original on the user's frames.
"""

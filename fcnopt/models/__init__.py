"""Fully convolutional networks and the checkpoints that hold them."""

"""Measures: IoU, latency and the benchmark that takes them together."""

"""ONNX graphs: files, equivalence, statistics and rewrites."""

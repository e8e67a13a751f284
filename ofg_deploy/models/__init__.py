"""Models that ship with the package, ``NAME.onnx`` with its card ``NAME.md``; ``catalogue`` finds them."""

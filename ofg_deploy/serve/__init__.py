"""Model file + two images -> warped image, transform, report. Neither torch nor onnx is imported here."""

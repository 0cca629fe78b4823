"""ONNX: from a traced network to a verified graph."""

"""Networks as files that run without rlprune: ONNX and torch.export, each checked against torch."""

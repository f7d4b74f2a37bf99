"""A quickstart app: PyTorch and FedAvg."""

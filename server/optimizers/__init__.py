"""Optimisers that only a server has; SGD and momentum are those of `shared_models.optimizers`."""

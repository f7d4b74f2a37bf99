"""Local training without a tape: each layer's backward pass steps its own weights, in place.

The gradient of a dense layer is a product of two thin matrices. Written straight into the weights
(`W -= rate * d.T @ x`) it is never stored: a third of the memory traffic of a training step. This
works because plain descent needs every gradient once, and because a layer's weights are not needed
any more when its own backward pass is done.
"""

"""The model zoo: one family a file, plain torch modules whose parts are named `encoder` and `head`."""

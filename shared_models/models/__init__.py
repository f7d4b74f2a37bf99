"""The model zoo: one family a file, plain modules whose parts are named `encoder` and `head`."""

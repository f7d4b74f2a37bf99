"""Logistic regression with a loop of its own."""

"""Quantized files for edge devices, each executed and compared before it counts."""

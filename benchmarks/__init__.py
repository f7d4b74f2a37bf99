"""How fast the simulator is, beside a bare loop, pfl and stock Flower: see docs/benchmarks.md."""

"""Reference pages made from the code: the command line, the config, the metrics, the examples."""

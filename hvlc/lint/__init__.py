"""Check graphs against a target: by its rules on any host, by its compiler where that is installed."""

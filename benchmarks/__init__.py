"""Speed and memory beside plain alternatives, measured in one go: ``python -m benchmarks`` (or ``make bench``)."""

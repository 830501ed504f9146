"""Runs on two machines: party 1 runs on another host. No other part of the package needs this."""

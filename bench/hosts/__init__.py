"""Two machines: party 1 runs on another host. Nothing else of the package needs this."""

"""pibench: the latency of private inference, measured."""

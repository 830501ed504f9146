"""The processes that hold shares: `driver` starts and commands them, `worker` is one of them."""

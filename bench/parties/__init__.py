"""The processes that hold shares: `driver` starts and commands them, `worker` is the code of one of them."""

"""What is trained: each task is a network with its loss and with what happens between the steps."""

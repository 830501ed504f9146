"""The program that parties run: `ir` says what it is, `lower` makes it from a torch network."""

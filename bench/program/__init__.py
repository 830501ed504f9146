"""The program that parties run: `ir` defines it, `lower` makes it from a torch network."""

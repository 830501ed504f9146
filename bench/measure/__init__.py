"""What is measured, and how: cases, rounds with checked answers, a session of them."""

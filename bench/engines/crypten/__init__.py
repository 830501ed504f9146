"""The stock engine: CrypTen's own operators."""

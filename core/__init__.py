"""Mathematics and interfaces, written once; nothing heavier than NumPy is imported here."""

"""Reading runs, comparing them, and writing what was found."""

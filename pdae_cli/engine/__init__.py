"""The model as a whole, and what is done with codes. It knows no file system."""

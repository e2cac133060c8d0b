"""The history of the tables in schema.py, one file per change in versions/."""

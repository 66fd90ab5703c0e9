"""The peers whose loops can be run: one file each, which imports the loop from a clone."""

"""Reads files in any usual encoding and compression, and writes files without ever losing an old one."""

"""Files as people have them: read whatever their encoding, written so that nothing is ever lost."""

"""Objects in the store, and the rows that describe them: artifacts, uploads, signed copies, retention."""

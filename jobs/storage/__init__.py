"""Objects in the store: keys, uploads, decoding, retention."""

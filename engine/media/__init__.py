"""Images of an edit: rendering, overlay, animation, and the XMP packet about their origin."""

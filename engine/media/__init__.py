"""Pictures of an edit: rendering, overlay, animation, and what their files say about their origin."""

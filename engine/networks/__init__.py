"""The networks, one file a family, and what is shared by all of them."""

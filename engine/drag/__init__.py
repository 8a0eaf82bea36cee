"""DragGAN's loop and its parts."""

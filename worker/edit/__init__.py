"""An edit's inputs, its drag and its artifacts."""

"""What requests do: each service holds the steps of one resource, between the routes and the repositories."""

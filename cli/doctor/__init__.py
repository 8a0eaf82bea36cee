"""`dragqueue doctor`: whether everything that a service needs is there and right, and what to do where it is not."""

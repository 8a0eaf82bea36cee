"""For all tests."""

import torch

# the tests' networks are small: more threads would wait for each other longer than they compute
torch.set_num_threads(1)
